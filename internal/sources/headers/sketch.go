package headers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Hints are what a source knows of a model without reading its files. Zero values mean that it does not know.
type Hints struct {
	Parameters   map[string]int64 // elements by dtype as safetensors writes it ("BF16"): the Hub's safetensors.parameters
	Total        int64            // parameters, where only their sum is known: the Hub's gguf.total
	Licence      string
	Gated        bool
	ChatTemplate bool
}

// apply fills in what is not the weights' business.
func (h Hints) apply(f *registry.Facts) {
	f.Licence = clean(h.Licence)
	f.Gated, f.ChatTemplate = h.Gated, h.ChatTemplate
}

// What a sketch reads at most of one file, in bytes. All together stay below 1 MB whatever the size of the model.
const (
	sketchStart  = 16 << 10  // of a shard: the headers of most are shorter
	sketchHeader = 128 << 10 // of a shard whose header is longer
	sketchIndex  = 128 << 10 // an index that is longer is read at its ends only
	sketchEnds   = 16 << 10  // of such an index, at either end
	sketchConfig = 128 << 10 // tokenizer_config.json, which can hold a whole vocabulary
	sketchShards = 3         // of which the headers are read
)

// Sketch finds out what ReadFolder does from little: a handful of reads, below 1 MB, also for a model of 163 shards
// whose headers alone have 10 MB. It is for files behind a network. Every shard must be there by its name; that each is
// whole follows from their sizes and the sum in the index. The headers of the first, a middle and the last shard are
// read; with no more than these everything is exact. What is derived from a part is said in a note. Errors are those of
// ReadFolder.
func Sketch(files []registry.File, format registry.Format, open Opener, hints Hints) (Weights, error) {
	d := newFolder(files, open)
	d.sketch = true
	w := Weights{Facts: registry.Facts{Format: format}}
	hints.apply(&w.Facts)
	idx, err := d.choose(format, &w)
	if err != nil {
		return w, err
	}
	cfg, err := d.config(&w.Facts)
	if err != nil {
		return w, err
	}
	if err := d.sketchWeights(&w, idx, cfg, hints); err != nil {
		return w, err
	}
	err = d.extras(&w.Facts)
	return w, err
}

// longIndex takes from an index that is too long to read the sums at one of its ends; which shards there are must follow
// from their names.
func (d *folder) longIndex(name string, ext []string, w *Weights) (*index, error) {
	idx := &index{}
	err := d.read(name, func(r io.ReaderAt, size int64) error {
		for _, at := range []int64{0, size - sketchEnds} {
			end := make([]byte, sketchEnds)
			if err := readFull(r, end, at); err != nil {
				return err
			}
			if idx.Metadata = metadataIn(end); idx.Metadata != nil {
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	loose := d.loose(ext)
	shards := slices.DeleteFunc(slices.Clone(loose), func(n string) bool { return !shardName.MatchString(n) })
	if len(shards) == 0 {
		return nil, Missing("Copy or download them to the same folder", "%s is there, but none of the shards it tells of", name)
	}
	if err := d.numbered(shards, name, w); err != nil {
		return nil, err
	}
	var have int64
	for _, n := range w.Files {
		have += d.size[n]
	}
	// Some models keep a part beside the numbered shards: the heads for several tokens at once, for example.
	if have < idx.total("total_size") && len(loose) > len(shards) {
		w.Files = loose
	}
	return idx, nil
}

// metadataIn finds the object called metadata in a piece of JSON.
func metadataIn(piece []byte) any {
	_, after, ok := bytes.Cut(piece, []byte(`"metadata"`))
	if !ok {
		return nil
	}
	var m map[string]any
	after = bytes.TrimLeft(bytes.TrimLeft(after, " \t\r\n"), ":")
	if err := json.NewDecoder(bytes.NewReader(after)).Decode(&m); err != nil {
		return nil // cut off, or no object: nothing is known
	}
	return m
}

// sketchWeights reads the headers of a few shards and concludes from them, the index and the hints.
func (d *folder) sketchWeights(w *Weights, idx *index, cfg config, hints Hints) error {
	f := &w.Facts
	if !strings.HasSuffix(w.Files[0], ".safetensors") {
		return d.readPickles(w, cfg)
	}
	q := cfg.quantization()
	q.note(f)
	var have int64
	for _, name := range w.Files {
		have += d.size[name]
	}
	if len(w.Files) > 1 {
		if err := d.adds(w, idx, have); err != nil {
			return err
		}
	}
	see := w.Files
	last := len(see) - 1
	switch {
	case len(hints.Parameters) > 0:
		see = see[:1] // only to see that it is what it should be
	case len(see) > sketchShards:
		see = []string{see[0], see[last/2], see[last]}
	}
	var all sample
	for i, name := range see {
		s, err := d.sketchShard(name, q)
		if err != nil {
			return err
		}
		if len(see) < len(w.Files) && i == 1 { // the middle one stands for all that are not read
			s = s.scaled(have - d.size[see[0]] - d.size[see[2]])
		}
		all.add(s)
	}
	f.WeightBytes = have - all.headers
	if total := idxTotal(idx, "total_size"); total > 0 && len(see) < len(w.Files) && plausible(total, have, len(w.Files)) {
		f.WeightBytes = total
	}
	f.DType, f.Parameters = all.dominant(), int64(all.elements)
	if !all.exact || len(see) < len(w.Files) {
		f.Parameters = int64(math.Round(all.elements / max(all.bytes, 1) * float64(f.WeightBytes)))
	}
	declared := idxTotal(idx, "total_parameters")
	switch bits := float64(f.WeightBytes) * 8; {
	case len(hints.Parameters) > 0:
		var packed bool
		if f.Parameters, f.DType, packed = q.hinted(hints.Parameters, f.WeightBytes); packed {
			f.Notes = append(f.Notes, "The number of parameters is derived from that of packed elements: it is some percent too high.")
		}
	case all.exact && len(see) == len(w.Files):
	case declared > 0 && bits/float64(declared) >= 1 && bits/float64(declared) <= 64 && f.Quantization == "":
		f.Parameters = declared
	default:
		f.Notes = append(f.Notes, fmt.Sprintf("The number of parameters is derived from the headers of %d of %d shards.", len(see), len(w.Files)))
	}
	cfg.sketchActive(f)
	return nil
}

func idxTotal(idx *index, name string) int64 {
	if idx == nil {
		return 0
	}
	return idx.total(name)
}

// plausible reports whether files of have bytes can hold tensors of total bytes: the rest are the headers.
func plausible(total, have int64, files int) bool {
	return total <= have && have-total <= have/50+int64(files)<<20
}

// adds holds the sizes of the shards against the sum in the index. When they are too small, one is cut short or the
// index is wrong: every header is looked at to tell which.
func (d *folder) adds(w *Weights, idx *index, have int64) error {
	total := idxTotal(idx, "total_size")
	if total == 0 || plausible(total, have, len(w.Files)) {
		return nil
	}
	if total > have {
		for _, name := range w.Files {
			if _, err := d.sketchShard(name, quantized{}); err != nil {
				return err
			}
		}
	}
	w.Facts.Notes = append(w.Facts.Notes, fmt.Sprintf("The index says that the weights have %s, the files have %s; the files count.", registry.Bytes(total), registry.Bytes(have)))
	return nil
}

// sample is what was seen of the weights.
type sample struct {
	elements float64            // parameters
	bytes    float64            // of tensors
	byType   map[string]float64 // bytes
	headers  int64              // bytes of the headers that were seen
	exact    bool               // every tensor of every shard that was added was seen
}

func (s *sample) add(o sample) {
	if s.byType == nil {
		s.byType, s.exact = map[string]float64{}, true
	}
	s.elements += o.elements
	s.bytes += o.bytes
	s.headers += o.headers
	s.exact = s.exact && o.exact
	for t, n := range o.byType {
		s.byType[t] += n
	}
}

// scaled returns what a file of so many bytes would hold that is made like the one that was seen.
func (s sample) scaled(size int64) sample {
	if s.bytes <= 0 {
		return s
	}
	by := float64(size) / (s.bytes + float64(s.headers))
	out := sample{elements: s.elements * by, bytes: s.bytes * by, headers: s.headers, byType: map[string]float64{}}
	for t, n := range s.byType {
		out.byType[t] = n * by
	}
	return out
}

func (s sample) dominant() string {
	best := ""
	for _, t := range slices.Sorted(maps.Keys(s.byType)) {
		if best == "" || s.byType[t] > s.byType[best] {
			best = t
		}
	}
	return best
}

// sketchShard reads the header of one shard, or the beginning of one that is long, and makes sure that the file is as
// long as its header says.
func (d *folder) sketchShard(name string, q quantized) (sample, error) {
	var out sample
	err := d.read(name, func(r io.ReaderAt, size int64) error {
		start := make([]byte, min(size, sketchStart))
		if err := readFull(r, start, 0); err != nil {
			return err
		}
		n, err := headerLength(start, size)
		if err != nil {
			return err
		}
		want := min(8+n, sketchHeader)
		if want > int64(len(start)) {
			longer := make([]byte, want)
			copy(longer, start)
			if err := readFull(r, longer[len(start):], int64(len(start))); err != nil {
				return err
			}
			start = longer
		}
		s := Safetensors{DataOffset: 8 + n}
		whole := 8+n <= want
		s.Tensors, err = readTensorList(bytes.NewReader(start[:want]), want-8)
		if err != nil && (whole || !endsEarly(err)) {
			return err
		}
		if whole {
			if err := s.fills(size); err != nil {
				return err
			}
		}
		out = sampleOf(s, size, q, whole)
		return nil
	})
	return out, err
}

// sampleOf sums the tensors that were seen; when they are only the first of the header, the rest are taken to be
// like them.
func sampleOf(s Safetensors, size int64, q quantized, whole bool) sample {
	var sum tally
	for _, t := range s.Tensors {
		sum.addPacked(t, q)
	}
	out := sample{elements: float64(sum.elements), bytes: float64(sum.bytes), byType: map[string]float64{}, headers: s.DataOffset, exact: whole}
	by := 1.0
	if !whole && sum.bytes > 0 {
		by = float64(size-s.DataOffset) / float64(sum.bytes)
	}
	out.elements *= by
	out.bytes *= by
	for t, n := range sum.byType {
		out.byType[t] = float64(n) * by
	}
	return out
}

// hinted makes parameters of the elements that a source counted by type. Some count packed elements as they lie in the
// file, some unpacked: what fits into the bytes of the weights is as in the file.
func (q quantized) hinted(byType map[string]int64, weights int64) (parameters int64, dtype string, packed bool) {
	var implied float64
	for hub, n := range byType {
		implied += float64(n) * float64(max(safetensorsBits[strings.ToUpper(hub)], 1)) / 8
	}
	packable := (q.method != "" || q.bits != 0) && implied <= float64(weights)*1.05
	var most float64
	for _, hub := range slices.Sorted(maps.Keys(byType)) {
		n := byType[hub]
		if n < 0 || n > math.MaxInt64/64 {
			continue
		}
		was := strings.ToLower(clean(hub))
		unpacked, is := q.unpack(was, n)
		if is == "mxfp4" {
			unpacked = unpacked / 17 * 16 // the scales are counted with them, one byte for 16
		}
		if q.float == "nvfp4" && was == "f8_e4m3" {
			unpacked = 0 // scales
		}
		if packable && unpacked != n {
			n, packed = unpacked, true
		}
		parameters += min(n, math.MaxInt64/8-min(parameters, math.MaxInt64/8))
		if size := float64(byType[hub]) * float64(max(safetensorsBits[strings.ToUpper(was)], 1)); size > most {
			most, dtype = size, is
		}
	}
	return parameters, dtype, packed
}

// sketchActive derives the parameters that one token passes through from the shape of the experts: three matrices of
// hidden_size by moe_intermediate_size each.
func (c config) sketchActive(f *registry.Facts) {
	total, used := c.experts()
	if used == 0 || f.Parameters == 0 {
		return
	}
	inner := c.number("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
	layers := c.number("num_hidden_layers", "num_layers", "n_layer") - c.number("first_k_dense_replace", "moe_layer_start_index")
	if every := c.number("interleave_moe_layer_step", "decoder_sparse_step", "expert_layer_period"); every > 1 {
		layers /= every
	}
	idle := float64(total-used) * 3 * float64(inner) * float64(c.number("hidden_size")) * float64(max(layers, 0))
	if idle > 0 && idle < float64(f.Parameters) {
		f.ActiveParameters = f.Parameters - int64(idle)
	}
}

func endsEarly(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
