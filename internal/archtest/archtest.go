// Package archtest holds the shape of the tree: who may import whom, and a few habits of the house. It has tests
// only. depguard says most of this while one types; this test sees what is imported through others, too.
package archtest
