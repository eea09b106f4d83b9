// Package traffic sends requests to a proxy under test at a steady rate, and says what became of each of them. All but this
// file needs the tag e2e.
package traffic
