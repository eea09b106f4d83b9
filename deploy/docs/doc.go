// Package docs checks the documentation; its tests are "make docs-check". A code block that is no template of ours although it
// has {{, and one that is no YAML although it begins like it, are fenced with the name of their language.
package docs
