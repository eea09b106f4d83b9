// Package processes tests the example in this directory on real Consul and HAProxy in one container. The tests need the tag
// e2e and the images built by make images; make test runs them.
package processes
