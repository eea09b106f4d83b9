// Package hello tests the example in this directory on real Docker, Consul, HAProxy and Redis. The tests need the tag e2e
// and the images built by make nginx-images; make test runs them.
package hello
