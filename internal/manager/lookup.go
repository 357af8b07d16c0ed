package manager

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
)

// LookUp says what is known of a model before any of its weights are fetched. Only source_type and source_path are
// needed; what is not given is filled in: the format and what chooses one of several from what the source offers, a free
// model_id from the path. Nothing is registered. Errors are those of the source's Resolve, and CodeInvalid with the fields
// at fault; with too many choices they are listed in Offers of what comes back beside the error.
func (m *Manager) LookUp(ctx context.Context, in registry.Model) (registry.Lookup, error) {
	model := m.normal(in.WithDefaults())
	out := registry.Lookup{Model: in}
	if fields := lookupFaults(model); len(fields) > 0 {
		return out, &registry.Error{Code: registry.CodeInvalid, Op: "manager.LookUp", Msg: "The model cannot be looked up", Fields: fields}
	}
	src, err := m.source(model.SourceType)
	if err != nil {
		return out, err
	}
	if c, ok := src.(sources.Checker); ok {
		if fields := c.Check(sources.RefOf(model)); len(fields) > 0 {
			return out, &registry.Error{Code: registry.CodeInvalid, Op: "manager.LookUp", Msg: "The model cannot be looked up", Fields: fields}
		}
	}
	label := ""
	if out.Offers, err = m.offers(ctx, src, model); err != nil {
		return out, err
	}
	if model, label, err = choose(model, out.Offers); err != nil {
		out.Model = model
		return out, err
	}
	snap, err := m.resolve(ctx, model)
	refused := err
	if gatedOff(err) {
		snap.Facts.Notes = append(slices.Clone(snap.Facts.Notes), "This is what everybody may know. The memory is estimated from the size of the files: what is in them could not be read.")
	} else if err != nil {
		out.Model = model
		return out, err
	}
	if model.ModelID == "" {
		if model.ModelID, err = m.freeID(ctx, suggestedID(model), label); err != nil {
			return out, err
		}
	}
	p, err := m.decide(ctx, registry.Record{Model: model}, "", artifactOf(snap))
	if err != nil {
		return out, err
	}
	out.Model, out.Revision, out.Files, out.Bytes, out.OnDisk, out.Facts, out.Plan = model.Redacted(), snap.Revision, snap.Files, snap.Bytes, snap.OnDisk, snap.Facts, &p
	out.Tokenizer = snap.Tokenizer
	out.Requests, out.Read, out.Problem = snap.Cost.Requests, snap.Cost.Bytes, registry.ProblemOf(refused)
	return out, refused
}

// gatedOff reports whether a source has said what a model is and refuses its files.
func gatedOff(err error) bool {
	var e *registry.Error
	return errors.As(err, &e) && e.Failure != nil && e.Failure.Kind == registry.FailureGated
}

// lookupFaults are those of registry.Validate but for what a look-up fills in.
func lookupFaults(model registry.Model) []registry.FieldError {
	probe := model
	if probe.ModelID == "" {
		probe.ModelID = "x"
	}
	if probe.ModelFormat == "" {
		probe.ModelFormat = registry.FormatSafetensors
	}
	return registry.Validate(probe)
}

// offers asks what there is, best first; nil when the source cannot say. Without a format it has to.
func (m *Manager) offers(ctx context.Context, src sources.Source, model registry.Model) ([]registry.Offer, error) {
	o, ok := src.(sources.Offerer)
	if !ok {
		return nil, nil
	}
	given, err := m.withSecrets(ctx, model)
	if err != nil {
		return nil, err
	}
	list, err := o.Offers(ctx, sources.RefOf(given))
	if err != nil && model.ModelFormat != "" {
		return nil, nil // Resolve says what is wrong, if anything is
	}
	return list, err
}

// choose fills in the format and the parameters that choose one of several. What was given is kept.
func choose(model registry.Model, offers []registry.Offer) (registry.Model, string, error) {
	for _, o := range offers {
		if (model.ModelFormat != "" && o.Format != model.ModelFormat) || !agrees(model.CustomLoaderParams, o.Params) {
			continue
		}
		model.ModelFormat = o.Format
		if len(o.Params) > 0 && !chosen(model.CustomLoaderParams) {
			params := maps.Clone(model.CustomLoaderParams)
			if params == nil {
				params = map[string]any{}
			}
			maps.Copy(params, o.Params)
			model.CustomLoaderParams = params
		}
		return model, o.Label, nil
	}
	if model.ModelFormat != "" {
		return model, "", nil
	}
	if ext := strings.ToLower(path.Ext(model.SourcePath)); ext == ".gguf" || ext == ".onnx" {
		model.ModelFormat = registry.Format(ext[1:])
		return model, "", nil
	}
	return model, "", &registry.Error{Code: registry.CodeInvalid, Op: "manager.LookUp", Msg: "The model cannot be looked up",
		Fields: []registry.FieldError{{Field: "model_format", Msg: "is required: what there is under this path does not tell it"}}}
}

// chosen reports whether the parameters choose files by themselves.
func chosen(params map[string]any) bool {
	for _, name := range []string{"filename", "quantization", "allow_patterns", "ignore_patterns"} {
		if v, ok := params[name]; ok && v != nil && v != "" {
			return true
		}
	}
	return false
}

// agrees reports whether what was given does not contradict an offer.
func agrees(given, offer map[string]any) bool {
	for k, v := range offer {
		if g, ok := given[k]; ok && g != nil && !strings.EqualFold(fmt.Sprint(g), fmt.Sprint(v)) {
			return false
		}
	}
	return true
}

// suggestedID makes a model_id of the source's path.
func suggestedID(model registry.Model) string {
	id := strings.TrimRight(model.SourcePath, "/")
	for _, scheme := range []string{"hf://", "https://", "http://", "s3://"} {
		id = strings.TrimPrefix(id, scheme)
	}
	switch model.SourceType {
	case registry.SourceLocal, registry.SourceS3:
		id = path.Base(id)
		if ext := path.Ext(id); ext == ".gguf" || ext == ".onnx" || ext == ".safetensors" || ext == ".bin" {
			id = strings.TrimSuffix(id, ext)
		}
	case registry.SourceHuggingFace, registry.SourceOllama, registry.SourceExternal:
	}
	segments := strings.FieldsFunc(id, func(r rune) bool { return r == '/' })
	for i, seg := range segments {
		seg = strings.Map(func(r rune) rune {
			if registry.ValidateModelID("x"+string(r)) != nil {
				return '-'
			}
			return r
		}, seg)
		segments[i] = strings.TrimLeft(seg, "-.")
	}
	id = strings.Join(segments, "/")
	if len(id) > registry.MaxModelID-16 || registry.ValidateModelID(id) != nil {
		return "model"
	}
	return id
}

// freeID returns id, or with the label or a number behind it when it is taken, in whatever case.
func (m *Manager) freeID(ctx context.Context, id, label string) (string, error) {
	tries := []string{id}
	if withLabel := id + "-" + label; label != "" && registry.ValidateModelID(withLabel) == nil && !strings.Contains(strings.ToLower(id), strings.ToLower(label)) {
		tries = append(tries, withLabel)
	}
	for n := 2; n < 100; n++ {
		tries = append(tries, fmt.Sprintf("%s-%d", id, n))
	}
	for _, try := range tries {
		_, err := m.store.Model(ctx, try)
		switch {
		case registry.CodeOf(err) == registry.CodeNotFound && !strings.Contains(err.Error(), "Did you mean"):
			return try, nil
		case err != nil && registry.CodeOf(err) != registry.CodeNotFound:
			return "", err
		}
	}
	return id, nil // taken, and said to be when it is registered
}
