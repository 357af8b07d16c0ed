// Package view holds what the console's templates are given: plain structs made of the registry's types, the words
// and numbers as people read them, and the addresses of pages. It knows nothing of HTTP or of where data comes from.
package view
