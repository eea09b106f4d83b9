// Package docs checks the documentation; its tests are "make docs-check". Fence a code block with the name of its language
// if it has {{ but is no template of berth, or begins like YAML but is none.
package docs
