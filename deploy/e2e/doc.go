// Package e2e tests the whole of berth on real Docker, Consul and HAProxy: the compose stack is brought up, scaled,
// broken and repaired under steady requests. The tests need the tag e2e, and the images that make images builds; make
// test runs them.
package e2e
