package view

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Preview is what is known about a model before it is registered.
type Preview struct {
	Source    registry.SourceType
	Offered   string            // source and path that this is about
	Made      string            // what was made of an address, as a sentence
	Suggested map[string]string // model_id and model_format, for fields that are empty
	Waited    time.Duration     // the source has not answered yet, for so long
	Again     string            // the address to ask again while it has not
	Problem   *registry.Problem // why nothing is known
	Facts     registry.Facts
	Revision  string
	Bytes     int64 // of all files
	OnDisk    int64 // of Bytes, those that are here
	Files     int
	Requests  int   // that the look took
	Read      int64 // bytes
	Offers    []Offer
	Plan      *registry.Plan
	Tokenizer *registry.Companion // of another repository; nil for none
}

// Offer is one of the models under one path, as a choice.
type Offer struct {
	registry.Offer
	Value   string // of its radio button
	Checked bool
	Fit     Status // whether it fits where the chosen one would be loaded; empty when that is not known
}

// PreviewOf makes a preview of a look-up. now is the present for what was typed: fields that are empty get suggestions.
func PreviewOf(l registry.Lookup, f Form) *Preview {
	p := &Preview{
		Source: l.Model.SourceType, Offered: OfferedAt(string(l.Model.SourceType), f.Values["source_path"]), Made: madeOf(l.Model, f.Values["source_path"]), Facts: l.Facts, Revision: l.Revision,
		Bytes: l.Bytes, OnDisk: l.OnDisk, Files: len(l.Files), Requests: l.Requests, Read: l.Read, Plan: l.Plan, Tokenizer: l.Tokenizer, Suggested: map[string]string{},
	}
	for name, v := range map[string]string{"model_id": l.Model.ModelID, "model_format": string(l.Model.ModelFormat)} {
		if v != "" && (f.Values[name] == "" || f.Filled[name] == f.Values[name]) {
			p.Suggested[name] = v
		}
	}
	for _, o := range l.Offers {
		p.Offers = append(p.Offers, Offer{Offer: o, Value: OfferValue(o), Checked: o.Format == l.Model.ModelFormat && chosenBy(l.Model.CustomLoaderParams, o), Fit: fitOf(l, o)})
	}
	return p
}

// madeOf says what a look-up made of the path that was typed; "" when it took it as it is.
func madeOf(m registry.Model, typed string) string {
	if m.SourcePath == typed || m.SourcePath == "" {
		return ""
	}
	line := "Read as " + m.SourcePath + " at the revision " + m.Revision
	if file, ok := m.CustomLoaderParams["filename"].(string); ok {
		line += ", file " + file
	}
	return line + ". That is what is stored."
}

func chosenBy(params map[string]any, o registry.Offer) bool {
	for _, name := range choosers {
		given, offered := "", ""
		if v := params[name]; v != nil {
			given = fmt.Sprint(v)
		}
		if v := o.Params[name]; v != nil {
			offered = fmt.Sprint(v)
		}
		if !strings.EqualFold(given, offered) {
			return false
		}
	}
	return true
}

// fitOf judges an offer by its size: what the chosen one needs beside its weights, the others need, too.
func fitOf(l registry.Lookup, o registry.Offer) Status {
	if l.Plan == nil || l.Plan.Problem != nil || l.Plan.Device == "" || l.Plan.Needs.Estimated == 0 {
		return Status{}
	}
	beside := max(l.Plan.Needs.KVCache+l.Plan.Needs.Overhead, 0)
	if o.Bytes+beside <= l.Plan.Free {
		return Status{"ready", "fits"}
	}
	return Status{"wait", "too large now"}
}

// Choice reports whether there is anything to choose.
func (p Preview) Choice() bool { return len(p.Offers) > 1 }

// Mixed reports whether the choices are of several formats, so that each has to say its own.
func (p Preview) Mixed() bool {
	return slices.ContainsFunc(p.Offers, func(o Offer) bool { return o.Format != p.Offers[0].Format })
}

// Asking is who is asked, for what is told while it has not answered.
func (p Preview) Asking() string {
	switch p.Source {
	case registry.SourceHuggingFace:
		return "the Hub"
	case registry.SourceS3:
		return "the object store"
	case registry.SourceOllama:
		return "the Ollama library"
	case registry.SourceLocal, registry.SourceExternal:
	}
	return "the source"
}

// Took says what the look cost, in words; "" when it cost no network.
func (p Preview) Took() string {
	if p.Requests == 0 {
		return ""
	}
	return fmt.Sprintf("Read from %s: %s in %s. Nothing was downloaded.", p.Asking(), Bytes(p.Read), Plural(p.Requests, "request", "requests"))
}

// Here says how much of the files is on disk already.
func (p Preview) Here() string { return onDisk(p.Source, p.OnDisk, p.Bytes) }

func onDisk(source registry.SourceType, have, all int64) string {
	switch {
	case all == 0 || source == registry.SourceExternal:
		return ""
	case have >= all, source == registry.SourceLocal:
		return "all on this machine"
	case have == 0:
		return "to be fetched"
	}
	return Bytes(have) + " on this machine, " + Bytes(all-have) + " to be fetched"
}

// FactList is what is known as names and values, what is not known left out.
func (p Preview) FactList() []Fact {
	f := p.Facts
	var out []Fact
	add := func(name, value, note string) {
		if value != "" {
			out = append(out, Fact{Name: name, Value: value, Note: note})
		}
	}
	if p.Bytes > 0 {
		add("Files", Plural(p.Files, "file", "files")+", "+Bytes(p.Bytes), p.Here())
	}
	add("Called", f.Name, "")
	if f.Format != "" {
		add("Format", FormatName(f.Format), f.Quantization)
	}
	add("Architecture", f.Architecture, "")
	if f.Parameters > 0 {
		note := f.DType
		if f.ActiveParameters > 0 && f.ActiveParameters < f.Parameters {
			note = strings.TrimSpace(note + ", " + Big(f.ActiveParameters) + " active")
		}
		add("Parameters", Big(f.Parameters), note)
	}
	if f.ContextLength > 0 {
		add("Context", "trained for "+Count(int64(f.ContextLength))+" tokens", "")
	}
	if f.Format != "" && p.Source != registry.SourceExternal {
		if p.Tokenizer != nil {
			add("Tokenizer", p.Tokenizer.Path, tokenizerNote(p.Tokenizer))
		} else if f.Tokenizer {
			add("Tokenizer", "comes with it", "")
		} else {
			add("Tokenizer", "not there", "name one in tokenizer_path")
		}
	}
	add("Licence", f.Licence, "")
	if p.Revision != "" && p.Source != registry.SourceLocal {
		out = append(out, Fact{Name: "Revision", Value: ShortRevision(p.Revision), Mono: true})
	}
	return out
}

// Caution is something to know before a model is used.
type Caution struct{ What, Says string }

// Cautions are what should make somebody think before they register the model.
func Cautions(f registry.Facts) []Caution {
	var out []Caution
	if f.Gated {
		out = append(out, Caution{"Gated", "Its files come only to those who accepted its terms at the Hub, with a token of theirs."})
	}
	if f.Code {
		out = append(out, Caution{"Carries code", "Python comes with it and runs only with trust_remote_code, after a maintainer's approval."})
	}
	if f.Pickles {
		out = append(out, Caution{"Pickles", "Reading its weights can run code. Prefer safetensors where there are any."})
	}
	return out
}

// ShortRevision writes an exact revision short: the first twelve characters of a commit or a fingerprint.
func ShortRevision(r string) string {
	if head, tail, ok := strings.Cut(r, ":"); ok && len(tail) > 12 {
		return head + ":" + tail[:12]
	}
	if len(r) > 12 {
		return r[:12]
	}
	return r
}
