// Package components has the small parts that every page of the console is made of.
package components

import (
	"context"
	"io"
	"strings"

	"github.com/a-h/templ"
)

// Prose is a text in which `commands and names` between backticks, as errors and hints have them, are set as code.
func Prose(text string) templ.Component {
	return templ.ComponentFunc(func(_ context.Context, w io.Writer) error {
		parts := strings.Split(text, "`")
		var b strings.Builder
		for i, part := range parts {
			switch {
			case i%2 == 0:
				b.WriteString(templ.EscapeString(part))
			case i == len(parts)-1: // no second backtick
				b.WriteString("`" + templ.EscapeString(part))
			case part == "":
				b.WriteString("``")
			default:
				b.WriteString("<code>" + templ.EscapeString(part) + "</code>")
			}
		}
		_, err := io.WriteString(w, b.String())
		return err
	})
}
