// Package traffic sends requests to a proxy under test at a steady rate, and records what became of each of them. All but
// this file needs the build tag e2e.
package traffic
