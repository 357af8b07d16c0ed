package headers

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// File is an open file.
type File interface {
	io.ReaderAt
	io.Closer
}

// Opener opens one file of a folder by its path relative to the folder.
type Opener func(name string) (File, error)

// Weights is what ReadFolder found: the facts, and the files of weights that an engine will read, in order.
type Weights struct {
	Facts registry.Facts
	Files []string
}

// Limits on the small files beside the weights, in bytes. An index has some 100 bytes for each tensor.
const (
	maxConfig = 4 << 20
	maxIndex  = 64 << 20
	maxReadme = 64 << 10
)

// ReadFolder reads a Hugging Face style folder whose files are given: config.json, the weights in the format, the
// tokenizer's files. It checks that every shard is there and complete. Format is FormatSafetensors or
// FormatTransformersPT; the latter takes safetensors before pickles, as transformers does.
func ReadFolder(files []registry.File, format registry.Format, open Opener) (Weights, error) {
	d := &folder{size: map[string]int64{}, all: files, open: open}
	for _, f := range files {
		if !strings.Contains(f.Path, "/") {
			d.size[f.Path] = f.Size
		}
	}
	w := Weights{Facts: registry.Facts{Format: format}}
	idx, err := d.choose(format, &w)
	if err != nil {
		return w, err
	}
	if _, ok := d.size["config.json"]; !ok {
		return w, Missing("Copy config.json from where the model came from", "the folder holds weights but no config.json%s", d.elsewhere("config.json"))
	}
	cfg := config{}
	if err := d.json("config.json", maxConfig, &cfg); err != nil {
		return w, err
	}
	cfg.facts(&w.Facts)
	if err := d.readWeights(&w, idx, cfg); err != nil {
		return w, err
	}
	err = d.extras(&w.Facts)
	return w, err
}

// ReadONNX reads the facts of an ONNX model: main, and the files of external data beside it. The graph itself is not
// parsed; what is known of it comes from a config.json in the same folder, if there is one.
func ReadONNX(main registry.File, data []registry.File, beside []registry.File, open Opener) (registry.Facts, error) {
	f := registry.Facts{Format: registry.FormatONNX, WeightBytes: main.Size}
	for _, x := range data {
		f.WeightBytes += x.Size
	}
	d := &folder{size: map[string]int64{main.Path: main.Size}, open: open}
	for _, x := range beside {
		d.size[x.Path] = x.Size
	}
	start, err := d.start(main.Path)
	if err != nil {
		return f, err
	}
	// A ModelProto begins with its field 1, ir_version, or, written by some exporters, with another small field.
	if len(start) == 0 || start[0] == 0 || bytes.HasPrefix(start, []byte("version ")) || bytes.HasPrefix(start, []byte("GGUF")) || start[0] == '<' {
		return f, InFile(notWeights(start, "ONNX"), main.Path)
	}
	if _, ok := d.size["config.json"]; ok {
		cfg := config{}
		if err := d.json("config.json", maxConfig, &cfg); err != nil {
			return f, err
		}
		cfg.facts(&f)
	}
	err = d.extras(&f)
	return f, err
}

// folder is a folder while it is read.
type folder struct {
	size map[string]int64 // the files directly in it
	all  []registry.File
	open Opener
}

// read opens a file for the time of fn and puts its name in front of errors.
func (d *folder) read(name string, fn func(io.ReaderAt, int64) error) error {
	f, err := d.open(name)
	if err != nil {
		return err
	}
	if err := fn(f, d.size[name]); err != nil {
		_ = f.Close() // nothing was written; the first error is the one that matters
		return InFile(err, name)
	}
	return f.Close()
}

func (d *folder) json(name string, limit int64, v any) error {
	return d.read(name, func(r io.ReaderAt, size int64) error { return readJSON(r, size, limit, v) })
}

func (d *folder) start(name string) (start []byte, err error) {
	err = d.read(name, func(r io.ReaderAt, size int64) (err error) {
		start, err = sniff(r, size)
		return err
	})
	return start, err
}

// choose finds the files of weights, and reads the index if there is one.
func (d *folder) choose(format registry.Format, w *Weights) (*index, error) {
	type kind struct{ index, single, ext string }
	kinds := []kind{{"model.safetensors.index.json", "model.safetensors", ".safetensors"}}
	if format == registry.FormatTransformersPT {
		kinds = append(kinds, kind{"pytorch_model.bin.index.json", "pytorch_model.bin", ".bin"})
	}
	for _, k := range kinds {
		if _, ok := d.size[k.index]; ok {
			idx := &index{}
			if err := d.json(k.index, maxIndex, idx); err != nil {
				return nil, err
			}
			names, err := idx.shards()
			if err != nil {
				return nil, InFile(err, k.index)
			}
			w.Files = names
			return idx, d.allHere(names, k.index+" names")
		}
		if _, ok := d.size[k.single]; ok {
			w.Files = []string{k.single}
			return nil, nil
		}
		loose := d.loose(k.ext)
		if len(loose) == 0 {
			continue
		}
		w.Files = loose
		if len(loose) == 1 && !shardName.MatchString(loose[0]) {
			return nil, nil
		}
		return nil, d.numbered(loose, k.index, w)
	}
	return nil, d.nothing(format)
}

// notModel are files that training and adapters leave beside the weights.
var notModel = regexp.MustCompile(`(?i)^(adapter_|training_args|optimizer|scheduler|rng_state|consolidated)`)

// loose lists the weights in the folder that follow no naming convention.
func (d *folder) loose(ext string) []string {
	var out []string
	for name := range d.size {
		if strings.HasSuffix(name, ext) && !notModel.MatchString(name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

var shardName = regexp.MustCompile(`^(.+)-(\d{5})-of-(\d{5})\.[a-z]+$`)

// numbered checks shards that come without their index: all of one set, and all there.
func (d *folder) numbered(names []string, indexName string, w *Weights) error {
	var want []string
	first := shardName.FindStringSubmatch(names[0])
	for _, name := range names {
		m := shardName.FindStringSubmatch(name)
		if m == nil || first == nil || m[1] != first[1] || m[3] != first[3] {
			return invalid("the folder holds several files of weights (%s) and no %s that says which belong together; keep one model in a folder", Some(names), indexName)
		}
	}
	count, _ := strconv.Atoi(first[3])
	ext := path.Ext(names[0])
	for i := 1; i <= min(count, 10_000); i++ {
		want = append(want, fmt.Sprintf("%s-%05d-of-%05d%s", first[1], i, count, ext))
	}
	w.Facts.Notes = append(w.Facts.Notes, indexName+" is not there; transformers needs it to load shards.")
	w.Files = want
	return d.allHere(want, "the names of the shards call for")
}

func (d *folder) allHere(names []string, who string) error {
	var missing []string
	for _, name := range names {
		if _, ok := d.size[name]; !ok {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return Missing("Copy or download them to the same folder", "%s %d files of which %d are not here: %s", who, len(names), len(missing), Some(missing))
}

// Some lists the first five names and counts the rest.
func Some(names []string) string {
	const show = 5
	shown := make([]string, 0, show)
	for _, n := range names[:min(len(names), show)] {
		shown = append(shown, clean(n))
	}
	s := strings.Join(shown, ", ")
	if more := len(names) - show; more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// nothing says what the folder holds instead of weights in the format.
func (d *folder) nothing(format registry.Format) error {
	if _, ok := d.size["adapter_config.json"]; ok {
		return invalid("the folder holds an adapter (LoRA), not a model; merge it into its base model first")
	}
	return Mismatch(d.all, format)
}

// Mismatch says that files hold no model of the format, what they hold instead, and what to do.
func Mismatch(files []registry.File, format registry.Format) error {
	held := Holds(files)
	if len(held) == 0 {
		if len(files) == 0 {
			return Missing("Copy the model into it, or correct source_path", "the folder is empty")
		}
		names := make([]string, 0, len(files))
		for _, f := range files {
			names = append(names, f.Path)
		}
		return Missing("Copy the weights into it, or correct source_path", "the folder holds no weights in any format we know, only %s", Some(names))
	}
	if !slices.Contains(held, format) {
		words := make([]string, 0, len(held))
		for _, h := range held {
			words = append(words, string(h))
		}
		return invalid("the folder holds %s, the model says %s; set model_format to %s or correct source_path", strings.Join(words, " and "), format, held[0])
	}
	d := &folder{all: files}
	return Missing("Set source_path to the folder that holds config.json and the weights", "the folder itself holds no %s weights%s", format, d.elsewhere(""))
}

// Holds returns the formats of the weights among files, the one with most bytes first.
func Holds(files []registry.File) []registry.Format {
	bytesOf := map[registry.Format]int64{}
	for _, f := range files {
		if format := FormatOf(f.Path); format != "" {
			bytesOf[format] += f.Size + 1
		}
	}
	var out []registry.Format
	for _, f := range registry.Formats {
		if bytesOf[f] > 0 {
			out = append(out, f)
		}
	}
	slices.SortStableFunc(out, func(a, b registry.Format) int { return cmp.Compare(bytesOf[b], bytesOf[a]) })
	return out
}

// FormatOf guesses the format of weights from a file's name; "" when they are no weights.
func FormatOf(name string) registry.Format {
	base := strings.ToLower(path.Base(name))
	if notModel.MatchString(base) {
		return ""
	}
	switch path.Ext(base) {
	case ".gguf":
		return registry.FormatGGUF
	case ".safetensors":
		return registry.FormatSafetensors
	case ".onnx":
		return registry.FormatONNX
	case ".bin", ".pt", ".pth":
		return registry.FormatTransformersPT
	}
	return ""
}

// elsewhere names the one folder below that holds a config.json, for when the path was given one level too high.
func (d *folder) elsewhere(name string) string {
	var at []string
	for _, f := range d.all {
		base := path.Base(f.Path)
		if strings.Contains(f.Path, "/") && (base == name || name == "" && (base == "config.json" || FormatOf(base) != "")) {
			at = append(at, path.Dir(f.Path))
		}
	}
	slices.Sort(at)
	if at = slices.Compact(at); len(at) == 1 {
		return fmt.Sprintf(" (but %s does)", clean(at[0]))
	}
	return ""
}

// readWeights reads the header of every file of weights and holds them against the index.
func (d *folder) readWeights(w *Weights, idx *index, cfg config) error {
	var sum tally
	where := map[string]string{}
	for _, name := range w.Files {
		if !strings.HasSuffix(name, ".safetensors") {
			w.Facts.Pickles = true
			w.Facts.WeightBytes += d.size[name]
			if err := d.read(name, checkPickle); err != nil {
				return err
			}
			continue
		}
		err := d.read(name, func(r io.ReaderAt, size int64) error {
			s, err := ReadSafetensors(r, size)
			for _, t := range s.Tensors {
				if other, dup := where[t.Name]; dup {
					return Corrupt("Get all shards again from one place", "the tensor %s is in %s too", quote(t.Name), other)
				}
				where[t.Name] = name
				sum.add(t)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	w.Facts.Parameters = sum.elements
	w.Facts.WeightBytes += sum.bytes
	w.Facts.DType = sum.dominant()
	if w.Facts.Pickles {
		w.Facts.DType = strings.TrimPrefix(cfg.text("torch_dtype", "dtype"), "torch.")
		w.Facts.Notes = append(w.Facts.Notes, "The weights are pickles: loading them can run code, and the number of parameters is not known.")
		return nil
	}
	if w.Facts.Quantization != "" {
		w.Facts.Notes = append(w.Facts.Notes, "The weights are quantised: several parameters may be packed into one element.")
	}
	if len(sum.byType) == 0 {
		return Corrupt(copyAgain, "%s holds no tensors", Some(w.Files))
	}
	return checkIndex(idx, where)
}

// checkIndex holds the index against what the shards say.
func checkIndex(idx *index, where map[string]string) error {
	if idx == nil {
		return nil
	}
	var wrong []string
	for tensor, file := range idx.WeightMap {
		if where[tensor] != file {
			wrong = append(wrong, quote(tensor)+" in "+file)
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	slices.Sort(wrong)
	return Corrupt("Get the index and all shards again from one place", "the index places %d tensors in shards that do not hold them: %s", len(wrong), Some(wrong))
}

// checkPickle checks what can be checked of PyTorch's own format without running it: a zip archive ends with its
// directory, so that a truncated one is noticed.
func checkPickle(r io.ReaderAt, size int64) error {
	start, err := sniff(r, size)
	if err != nil {
		return err
	}
	zip := bytes.HasPrefix(start, []byte("PK\x03\x04"))
	// Protocol 2 pickles, as torch.save wrote them before 1.6, begin with 0x80.
	if legacy := len(start) > 0 && start[0] == 0x80; !zip && !legacy {
		return notWeights(start, "PyTorch")
	}
	if !zip {
		return nil
	}
	tail := make([]byte, min(size, 1024))
	if err := readFull(r, tail, size-int64(len(tail))); err != nil {
		return err
	}
	if !bytes.Contains(tail, []byte("PK\x05\x06")) {
		return Corrupt(copyAgain+", or wait until the copy has finished", "the file is truncated or half copied: it is a zip archive without its end (byte %d)", size)
	}
	return nil
}

// tokenizerFiles are those of which one is enough for a tokenizer.
var tokenizerFiles = []string{"tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json", "tekken.json"}

// HasTokenizer reports whether a folder with these names holds a tokenizer.
func HasTokenizer(names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(tokenizerFiles, n) || strings.HasSuffix(n, ".tiktoken") })
}

// extras reads what the small files beside the weights say.
func (d *folder) extras(f *registry.Facts) error {
	names := make([]string, 0, len(d.size))
	for n := range d.size {
		names = append(names, n)
	}
	f.Tokenizer = HasTokenizer(names)
	if slices.Contains(names, "modules.json") { // sentence-transformers
		f.Embedding = true
	}
	if slices.Contains(names, "chat_template.jinja") || slices.Contains(names, "chat_template.json") {
		f.ChatTemplate = true
	}
	if slices.Contains(names, "tokenizer_config.json") {
		var t struct {
			ChatTemplate any            `json:"chat_template"`
			AutoMap      map[string]any `json:"auto_map"`
		}
		if err := d.json("tokenizer_config.json", maxConfig, &t); err != nil {
			return err
		}
		f.ChatTemplate = f.ChatTemplate || t.ChatTemplate != nil && t.ChatTemplate != ""
		f.Code = f.Code || len(t.AutoMap) > 0
	}
	if size, ok := d.size["README.md"]; ok && f.Licence == "" {
		return d.read("README.md", func(r io.ReaderAt, _ int64) error {
			buf := make([]byte, min(size, maxReadme))
			if err := readFull(r, buf, 0); err != nil {
				return err
			}
			f.Licence = licence(string(buf))
			return nil
		})
	}
	return nil
}

// licence reads the line of a model card's front matter.
func licence(card string) string {
	matter, ok := strings.CutPrefix(card, "---\n")
	if !ok {
		return ""
	}
	for line := range strings.Lines(matter) {
		if strings.HasPrefix(line, "---") {
			break
		}
		if v, ok := strings.CutPrefix(line, "license:"); ok {
			return clean(strings.Trim(strings.TrimSpace(v), `"'`))
		}
	}
	return ""
}
