// Package onecontainer tests the example in this directory, on real Docker, Consul and HAProxy. The tests need the tag
// e2e, and the images that make images builds; make test runs them.
package onecontainer
