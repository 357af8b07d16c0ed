package httpengine

import (
	"regexp"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Cause is one row of an engine's table of failures: a line that it prints and what that means.
type Cause struct {
	Kind    registry.FailureKind
	Pattern *regexp.Regexp
	Msg     string // may use the pattern's groups: $1
	Hint    string
}

// Diagnose returns the first cause of the table of which a line is found, the zero Failure if there is none. The table's
// order decides, not the log's: an engine prints general lines after and before the one that matters.
func Diagnose(table []Cause, tail []string) registry.Failure {
	for _, c := range table {
		for _, line := range tail {
			m := c.Pattern.FindStringSubmatchIndex(line)
			if m == nil {
				continue
			}
			msg := string(c.Pattern.ExpandString(nil, c.Msg, line, m))
			return registry.Failure{Kind: c.Kind, Msg: strings.TrimSpace(msg), Hint: c.Hint}
		}
	}
	return registry.Failure{}
}
