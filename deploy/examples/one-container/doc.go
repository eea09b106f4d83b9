// Package onecontainer tests the example in this directory on real Docker, Consul and HAProxy. The tests need the tag e2e
// and the images built by make images; make test runs them.
package onecontainer
