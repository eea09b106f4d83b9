// Package testenv is the environment of all tests: real Docker, real Consul agents, compose projects, load, and what tests
// without Docker need as well: free ports, waiting for a condition, a log that can be read. It removes what tests made in
// Docker, even after a crash. What needs Docker has the build tag e2e.
package testenv
