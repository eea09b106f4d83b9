// Package lab starts real Consul agents in Docker for end-to-end tests, and removes what tests made, even after a crash.
// All but this file needs the tag e2e.
package lab
