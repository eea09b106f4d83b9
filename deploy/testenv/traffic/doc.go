// Package traffic sends requests to a proxy under test at a steady rate and records the outcome of each. Everything but
// this file needs the build tag e2e.
package traffic
