// Package e2e tests all of berth on real Docker, Consul and HAProxy: the compose stack is started, scaled, broken and
// repaired under steady requests. The tests need the tag e2e and the images built by make images; make test runs them.
package e2e
