package hubtest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// description is what the Hub reads out of a commit's files for its page and its API. What cannot be read is left out.
type description struct {
	card        map[string]any // the front matter of README.md
	config      map[string]any // some of config.json
	safetensors map[string]any
	used        int64
}

// describe reads the files of a commit, once.
func (c *commit) describe() description {
	c.described.Do(func() {
		d := &c.about
		if f := c.named["README.md"]; f != nil {
			d.card = frontMatter(f.start(1 << 20))
		}
		var config map[string]any
		if f := c.named["config.json"]; f != nil && json.Unmarshal(f.start(4<<20), &config) == nil {
			d.config = map[string]any{}
			for _, key := range []string{"architectures", "model_type", "auto_map", "quantization_config"} {
				if v, ok := config[key]; ok {
					d.config[key] = v
				}
			}
		}
		var tokenizer map[string]any
		if f := c.named["tokenizer_config.json"]; f != nil && d.config != nil && json.Unmarshal(f.start(4<<20), &tokenizer) == nil {
			kept := map[string]any{}
			for _, key := range []string{"bos_token", "eos_token", "pad_token", "unk_token", "chat_template"} {
				if v, ok := tokenizer[key]; ok {
					kept[key] = v
				}
			}
			d.config["tokenizer_config"] = kept
		}
		parameters, total := map[string]int64{}, int64(0)
		for _, f := range c.files {
			d.used += f.size
			if path.Ext(f.path) != ".safetensors" {
				continue
			}
			for kind, n := range f.safetensors() {
				parameters[kind] += n
				total += n
			}
		}
		if total > 0 {
			d.safetensors = map[string]any{"parameters": parameters, "total": total}
		}
	})
	return c.about
}

// start returns the beginning of a file, nothing if it cannot be read.
func (f *file) start(limit int64) []byte {
	in, err := f.open()
	if err != nil {
		return nil
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, limit))
	if err != nil {
		return nil
	}
	return b
}

// safetensors returns the elements of each type. It reads the header by itself: a double that read with what it is to
// test would share its mistakes.
func (f *file) safetensors() map[string]int64 {
	b := f.start(8)
	if len(b) < 8 {
		return nil
	}
	n := binary.LittleEndian.Uint64(b)
	if n > 100_000_000 {
		return nil
	}
	b = f.start(8 + int64(n))
	var header map[string]struct {
		DType string  `json:"dtype"`
		Shape []int64 `json:"shape"`
	}
	if uint64(len(b)) < 8+n || json.Unmarshal(b[8:], &header) != nil {
		return nil // not what its name says: the Hub shows nothing then, too
	}
	out := map[string]int64{}
	for name, t := range header {
		if name == "__metadata__" {
			continue
		}
		elements := int64(1)
		for _, d := range t.Shape {
			elements *= d
		}
		out[t.DType] += elements
	}
	return out
}

// frontMatter returns the YAML between the first two lines of three dashes, nil if there is none.
func frontMatter(readme []byte) map[string]any {
	text, ok := bytes.CutPrefix(bytes.ReplaceAll(readme, []byte("\r\n"), []byte("\n")), []byte("---\n"))
	if !ok {
		return nil
	}
	front, _, ok := bytes.Cut(text, []byte("\n---"))
	if !ok {
		return nil
	}
	var card map[string]any
	if yaml.Unmarshal(front, &card) != nil {
		return nil
	}
	return card
}

// tags are what the Hub tags a model with by itself.
func (c *commit) tags(d description, s Settings) []string {
	var out []string
	for ext, tag := range map[string]string{".safetensors": "safetensors", ".gguf": "gguf", ".onnx": "onnx", ".bin": "pytorch"} {
		if slices.ContainsFunc(c.files, func(f *file) bool { return path.Ext(f.path) == ext }) {
			out = append(out, tag)
		}
	}
	slices.Sort(out)
	if s.Library != "" {
		out = slices.Insert(out, 0, s.Library)
	}
	if kind, ok := d.config["model_type"].(string); ok {
		out = append(out, kind)
	}
	if s.Pipeline != "" {
		out = append(out, s.Pipeline)
	}
	if _, ok := d.config["auto_map"]; ok {
		out = append(out, "custom_code")
	}
	if more, ok := d.card["tags"].([]any); ok {
		for _, t := range more {
			if t, ok := t.(string); ok && !slices.Contains(out, t) {
				out = append(out, t)
			}
		}
	}
	if licence, ok := d.card["license"].(string); ok {
		out = append(out, "license:"+licence)
	}
	return append(out, "region:us")
}

// info answers with what is known of a model at a commit.
func (h *Hub) info(p *reply, r *repository, c *commit) {
	q := p.r.URL.Query()
	s, d := h.settingsOf(r), c.describe()
	if s.CardData != nil {
		d.card = s.CardData
	}
	for into, key := range map[*string]string{&s.Pipeline: "pipeline_tag", &s.Library: "library_name"} {
		if v, ok := d.card[key].(string); ok && *into == "" {
			*into = v
		}
	}
	author, _, _ := strings.Cut(r.id, "/")
	siblings := []any{}
	for _, f := range c.files {
		sibling := map[string]any{"rfilename": f.path}
		if yes(q, "blobs") {
			sibling["size"], sibling["blobId"] = f.size, f.oid
			if f.lfs() {
				sibling["lfs"] = map[string]any{"sha256": h.toldIn(p, f), "size": f.size, "pointerSize": f.ptr}
			}
		}
		siblings = append(siblings, sibling)
	}
	var gated any = false
	if s.Gated != "" {
		gated = s.Gated
	}
	m := map[string]any{
		"_id": objectID("model", []byte(r.id))[:24], "id": r.id, "modelId": r.id, "author": author, "sha": c.sha,
		"lastModified": stamp(c.at), "createdAt": stamp(c.at), "private": s.Private, "gated": gated, "disabled": s.Disabled,
		"downloads": 0, "likes": 0, "tags": c.tags(d, s), "siblings": siblings, "spaces": []any{}, "usedStorage": d.used,
	}
	for key, v := range map[string]map[string]any{"cardData": d.card, "config": d.config, "safetensors": d.safetensors} {
		if v != nil {
			m[key] = v
		}
	}
	for key, v := range map[string]string{"pipeline_tag": s.Pipeline, "library_name": s.Library} {
		if v != "" {
			m[key] = v
		}
	}
	if yes(q, "securityStatus") {
		m["securityRepoStatus"] = map[string]any{"scansDone": true, "filesWithIssues": []any{}}
	}
	if wanted := slices.Concat(q["expand"], q["expand[]"]); len(wanted) > 0 {
		maps.DeleteFunc(m, func(key string, _ any) bool { return key != "_id" && key != "id" && !slices.Contains(wanted, key) })
	}
	h.json(p, m)
}
