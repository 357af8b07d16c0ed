package headers

import (
	"bytes"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// tokenizerFiles are those of which one is enough for a tokenizer: that of the tokenizers library, SentencePiece's under
// its names, word pieces, byte pairs, tiktoken, and Mistral's own.
var tokenizerFiles = []string{
	"tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "source.spm", "vocab.txt", "vocab.json",
	"vocab.bpe", "tekken.json", "tokenizer.model.v3", "tokenizer.model.v7",
}

// HasTokenizer reports whether a folder with these names holds a tokenizer.
func HasTokenizer(names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(tokenizerFiles, n) || strings.HasSuffix(n, ".tiktoken") })
}

// extras reads what the small files beside the weights say.
func (d *folder) extras(f *registry.Facts) error {
	f.Tokenizer = HasTokenizer(slices.Collect(maps.Keys(d.size)))
	if d.has("modules.json") { // sentence-transformers: an encoder, a pooling (1_Pooling) and what follows it
		f.Embedding = true
	}
	if d.has("chat_template.jinja") || d.has("chat_template.json") {
		f.ChatTemplate = true
	}
	if d.has("adapter_config.json") {
		f.Notes = append(f.Notes, "An adapter (LoRA) lies beside the model and is not used.")
	}
	if err := d.tokenizerConfig(f); err != nil {
		return err
	}
	if d.has("README.md") && f.Licence == "" {
		return d.card(f)
	}
	return nil
}

// tokenizerConfig looks for a chat template and for code. Of a file that is too long for a sketch the end is searched for
// the template: it stands behind the long list of added tokens.
func (d *folder) tokenizerConfig(f *registry.Facts) error {
	const name = "tokenizer_config.json"
	size, ok := d.size[name]
	switch {
	case !ok:
		return nil
	case d.sketch && size > sketchConfig && f.ChatTemplate:
		return nil
	case d.sketch && size > sketchConfig:
		return d.read(name, func(r io.ReaderAt, size int64) error {
			end := make([]byte, sketchConfig/2)
			if err := readFull(r, end, size-int64(len(end))); err != nil {
				return err
			}
			f.ChatTemplate = bytes.Contains(end, []byte(`"chat_template":`))
			return nil
		})
	}
	var t struct {
		ChatTemplate any            `json:"chat_template"`
		AutoMap      map[string]any `json:"auto_map"`
	}
	if err := d.json(name, maxConfig, &t); err != nil {
		return err
	}
	f.ChatTemplate = f.ChatTemplate || t.ChatTemplate != nil && t.ChatTemplate != ""
	f.Code = f.Code || len(t.AutoMap) > 0
	return nil
}

// card reads the licence from the front matter of README.md, a little first: most are short.
func (d *folder) card(f *registry.Facts) error {
	return d.read("README.md", func(r io.ReaderAt, size int64) error {
		for _, n := range []int64{4 << 10, maxReadme} {
			buf := make([]byte, min(size, n))
			if err := readFull(r, buf, 0); err != nil {
				return err
			}
			var ended bool
			if f.Licence, ended = licence(string(buf)); ended || int64(len(buf)) == size {
				return nil
			}
		}
		return nil
	})
}

// licence reads the line of a model card's front matter, and reports whether nothing more can follow: the line or the
// end of the matter was found, or there is none.
func licence(card string) (string, bool) {
	matter, ok := strings.CutPrefix(strings.ReplaceAll(card, "\r\n", "\n"), "---\n")
	if !ok {
		return "", true
	}
	for line := range strings.Lines(matter) {
		if strings.HasPrefix(line, "---") {
			return "", true
		}
		if v, ok := strings.CutPrefix(line, "license:"); ok && strings.HasSuffix(line, "\n") {
			return clean(strings.Trim(strings.TrimSpace(v), `"'`)), true
		}
	}
	return "", false
}
