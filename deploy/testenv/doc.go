// Package testenv is the environment of all tests: real Docker, real Consul agents, compose projects and load. Tests
// without Docker use its free ports, waiting for conditions and readable logs. It removes what tests created in Docker,
// even after a crash. Everything that needs Docker has the build tag e2e.
package testenv
