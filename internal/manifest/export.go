package manifest

import (
	"bufio"
	"io"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

const exportHeader = `# Models exported from LLMModelManager. Secrets are never exported; put them back after importing.
`

// Export writes the models that each yields as one document, in the order in which they come and with the guide's
// order of fields, without those that are not given or at their default. It writes as it goes and keeps nothing.
// Secrets of custom_loader_params are left out, each with a comment that says so. Errors of each and of w are
// returned as they are.
func Export(w io.Writer, each func(yield func(registry.Record) error) error) error {
	out := bufio.NewWriterSize(w, 64<<10)
	if _, err := out.WriteString(exportHeader + "models:"); err != nil {
		return err
	}
	n := 0
	err := each(func(r registry.Record) error {
		sep := "\n\n  - "
		if n++; n == 1 {
			sep = "\n  - "
		}
		e := writer{eol: "\n", noSecrets: true}
		e.WriteString(sep)
		e.fields(encode(r.Model), 4)
		text := e.String()
		_, err := out.WriteString(text[:len(text)-1]) // the line end comes with the next entry
		return err
	})
	if err != nil {
		return err
	}
	end := "\n"
	if n == 0 {
		end = " []\n"
	}
	if _, err := out.WriteString(end); err != nil {
		return err
	}
	return out.Flush()
}
