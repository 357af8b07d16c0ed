package headers

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// sketchGGUF is how many bytes of a GGUF file are read: the keys about the architecture stand before the vocabulary,
// which takes megabytes.
const sketchGGUF = 256 << 10

// SketchGGUF finds out from one read what ReadGGUF does from the whole header: files are the shards of one model, in order.
// A header that is short is read whole, and everything is exact. Else what stands behind the vocabulary is not seen: the
// number of parameters is the hint's, or derived from the bytes, and a chat template is known from the hint only. Errors
// are those of ReadGGUF.
func SketchGGUF(files []registry.File, open Opener, hints Hints) (registry.Facts, error) {
	if len(files) == 0 {
		return registry.Facts{}, invalid("no GGUF file was given")
	}
	d := newFolder(nil, open)
	var bytes int64
	for _, f := range files {
		d.size[f.Path] = f.Size
		bytes += f.Size
	}
	if len(files) > 1 && bytes <= sketchGGUF { // all of them cost no more than the one read
		var shards []GGUF
		for _, one := range files {
			if err := d.read(one.Path, func(r io.ReaderAt, size int64) error {
				g, err := ScanGGUF(r, size)
				shards = append(shards, g)
				return err
			}); err != nil {
				return registry.Facts{}, err
			}
		}
		return CombineGGUF(shards)
	}
	first := files[0].Path
	var f registry.Facts
	err := d.read(first, func(r io.ReaderAt, size int64) error {
		g, whole, err := beginning(r, size)
		switch {
		case err != nil:
			return err
		case g.Type != "model":
			return invalid("this GGUF file holds no model but general.type %s; name the file of the model itself", quote(g.Type))
		case g.SplitCount > 1 && g.SplitCount != len(files):
			return invalid("the first GGUF file says that there are %d shards, but %d were found", g.SplitCount, len(files))
		case whole && len(files) == 1:
			f, err = CombineGGUF([]GGUF{g})
			return err
		}
		if f, err = g.facts(); err != nil {
			return err
		}
		f.WeightBytes = bytes
		if f.Quantization == "" {
			f.Quantization = QuantizationOf(first)
		}
		f.DType = mixture.ReplaceAllString(strings.ToLower(strings.TrimPrefix(f.Quantization, "UD-")), "$1")
		f.Parameters = max(hints.Total, 0)
		label := g.text("general.size_label")
		// In a model that is labelled in millions the vocabulary is a large part, and that is quantised less than the rest.
		small := labelled(label) > 0 && strings.HasSuffix(label, "M")
		if bits := bitsPerWeight[f.Quantization]; f.Parameters == 0 && bits > 0 && !small {
			f.Parameters = int64(float64(bytes) * 8 / bits)
			f.Notes = append(f.Notes, fmt.Sprintf("The number of parameters is derived from the size of the files, as usual for %s.", f.Quantization))
		}
		if f.Parameters == 0 {
			if f.Parameters = labelled(label); f.Parameters > 0 {
				f.Notes = append(f.Notes, "The number of parameters is the rounded one that the file is labelled with.")
			}
		}
		if plainTypes[f.DType] {
			f.Quantization = ""
		}
		g.sketchActive(&f)
		if !f.ChatTemplate && hints.Total == 0 && !hints.ChatTemplate {
			f.Notes = append(f.Notes, "Whether it has a chat template is seen when it was fetched: that stands behind the vocabulary.")
		}
		return nil
	})
	f.Gated, f.ChatTemplate = hints.Gated, f.ChatTemplate || hints.ChatTemplate
	if f.Licence == "" {
		f.Licence = clean(hints.Licence)
	}
	return f, err
}

// sketchActive derives the parameters that one token passes through from the shape of the experts.
func (g GGUF) sketchActive(f *registry.Facts) {
	n := func(key string) float64 { return float64(g.number(f.Architecture + "." + key)) }
	total, used := n("expert_count"), n("expert_used_count")
	idle := (total - used) * 3 * n("expert_feed_forward_length") * n("embedding_length") * (n("block_count") - n("leading_dense_block_count"))
	if used > 0 && idle > 0 && idle < float64(f.Parameters) {
		f.ActiveParameters = f.Parameters - int64(idle)
	}
}

// mixture is a quantisation that is named after the type of most of its tensors: q4_k_m mixes q4_k and q6_k.
var mixture = regexp.MustCompile(`^(q\d_k)_[a-z]+$`)

// labelled reads a size such as 8B or 0.5B; of experts, 8x7B, it tells too little.
func labelled(size string) int64 {
	number, billions := strings.CutSuffix(size, "B")
	if !billions {
		number, _ = strings.CutSuffix(size, "M")
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !(n > 0 && n < 1e5) || number == size {
		return 0
	}
	if billions {
		n *= 1000
	}
	return int64(n * 1e6)
}

// beginning reads as many keys as stand in the first bytes of a GGUF file, and reports whether that was the whole header.
func beginning(r io.ReaderAt, size int64) (GGUF, bool, error) {
	g := GGUF{Type: "model", values: map[string]ggufValue{}}
	start := make([]byte, min(max(size, 0), sketchGGUF))
	if err := readFull(r, start, 0); err != nil {
		return g, false, err
	}
	if !bytes.HasPrefix(start, []byte("GGUF")) {
		return g, false, notWeights(start, "GGUF")
	}
	c := &cursor{r: bytes.NewReader(start), size: size, limit: int64(len(start)), pos: 4}
	err := g.scan(c)
	if err != nil && !c.cut {
		return g, false, err
	}
	if v, ok := g.values["general.type"]; ok && v.kind == kindString {
		g.Type = v.text
	}
	g.SplitNo, g.SplitCount = g.number("split.no"), g.number("split.count")
	return g, err == nil, nil
}

// quantization finds the name of a quantisation in that of a file, as everybody names GGUF files.
var quantization = regexp.MustCompile(`(?i)(?:^|[^A-Za-z0-9])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4))(?:[^A-Za-z0-9_]|$)`)

// QuantizationOf returns the quantisation that a GGUF file is named after, in capitals: Q4_K_M, UD-Q4_K_XL, F16; "" when
// its name tells of none. Folders count when the file's own name does not say it.
func QuantizationOf(name string) string {
	for _, part := range []string{path.Base(name), path.Dir(name)} {
		all := quantization.FindAllStringSubmatch(strings.TrimSuffix(part, ".gguf"), -1)
		if len(all) > 0 {
			name := strings.ToUpper(all[len(all)-1][1])
			if bits, ok := strings.CutPrefix(name, "FP"); ok {
				name = "F" + bits
			}
			return name
		}
	}
	return ""
}

// bitsPerWeight is what quantisations take on average: the table of tools/quantize/README.md of llama.cpp 11434, for
// Llama 3.1 8B. Other models differ by some percent. That table has Q4_1, Q5_0 and Q5_1 not; they are worked out the way
// Q4_0 comes out there: their blocks take 5, 5.5 and 6 bits, and the output tensor, 6.5% of that model, is Q6_K.
var bitsPerWeight = map[string]float64{
	"IQ1_S": 2.0042, "IQ1_M": 2.1460, "IQ2_XXS": 2.3824, "IQ2_XS": 2.5882, "IQ2_S": 2.7403, "IQ2_M": 2.9294,
	"IQ3_XXS": 3.2548, "IQ3_XS": 3.4977, "IQ3_S": 3.6606, "IQ3_M": 3.7628, "IQ4_XS": 4.4597, "IQ4_NL": 4.6818,
	"Q2_K_S": 2.9697, "Q2_K": 3.1593, "Q3_K_S": 3.6429, "Q3_K_M": 3.9960, "Q3_K_L": 4.2979, "Q4_0": 4.6672, "Q4_1": 5.1, "Q4_K_S": 4.6672, "Q4_K_M": 4.8944,
	"Q5_0": 5.57, "Q5_1": 6.04, "Q5_K_S": 5.5704, "Q5_K_M": 5.7036, "Q6_K": 6.5633, "Q8_0": 8.5008, "F16": 16.0005, "BF16": 16.0005, "F32": 32,
}
