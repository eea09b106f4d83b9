// Package chatnginx tests the example in this directory on real Consul, nginx, Redis and a browser. The tests need the tag
// e2e and the images built by make test-images; make test runs them.
package chatnginx
