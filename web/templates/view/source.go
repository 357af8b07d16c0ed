package view

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// SourceParam is one of custom_loader_params that the form has a field of its own for, since a source needs it before
// anything can be looked up. Secret ones take the reference to a stored secret, never the secret itself: the form is
// sent while it is being filled in, in an address.
type SourceParam struct {
	Name, Label, Hint, Example string
	Secret                     bool
	Sources                    []registry.SourceType
}

// SourceParams are the parameters with a field of their own, in the form's order.
var SourceParams = []SourceParam{
	{Name: "auth_token", Label: "Credentials", Secret: true, Hint: "A stored secret that holds a token. Without one, the server's own is used, if it has one.", Sources: []registry.SourceType{registry.SourceHuggingFace, registry.SourceOllama}},
	{Name: "endpoint_url", Label: "Service", Example: "https://minio.example.com", Hint: "Where the S3 service is. Empty: AWS, or the server's environment.", Sources: []registry.SourceType{registry.SourceS3}},
	{Name: "region", Label: "Region", Example: "us-east-1", Hint: "Of the bucket. Empty: the server's environment.", Sources: []registry.SourceType{registry.SourceS3}},
	{Name: "access_key_id", Label: "Key's id", Secret: true, Hint: "A stored secret. Without one, the server's own credentials are used.", Sources: []registry.SourceType{registry.SourceS3}},
	{Name: "secret_access_key", Label: "Secret key", Secret: true, Hint: "A stored secret, too.", Sources: []registry.SourceType{registry.SourceS3}},
}

// paramPrefix is what the names of their fields begin with.
const paramPrefix = "param."

// Of reports whether the parameter is one of a source's.
func (p SourceParam) Of(source string) bool {
	return slices.Contains(p.Sources, registry.SourceType(source))
}

// Field is the name of its field.
func (p SourceParam) Field() string { return paramPrefix + p.Name }

// choosers are the parameters that choose one of several models under one path: those of registry.Offer.
var choosers = []string{"quantization", "filename"}

// OfferValue writes what an offer sets as one text, for the value of its radio button.
func OfferValue(o registry.Offer) string {
	q := url.Values{"model_format": {string(o.Format)}}
	for k, v := range o.Params {
		q.Set(k, fmt.Sprint(v))
	}
	return q.Encode()
}

// OfferedAt names the place that offers are of.
func OfferedAt(source, path string) string { return source + ":" + path }

// lift takes the parameters that have fields of their own out of a model's and into the form.
func (f *Form) lift(m registry.Model) map[string]any {
	rest := maps.Clone(m.CustomLoaderParams)
	for _, p := range SourceParams {
		v, ok := rest[p.Name].(string)
		if !ok || !p.Of(string(m.SourceType)) || (p.Secret && !registry.IsReference(v)) {
			continue
		}
		f.Values[p.Field()] = v
		delete(rest, p.Name)
	}
	o := registry.Offer{Format: m.ModelFormat, Params: map[string]any{}}
	for _, name := range choosers {
		if v, ok := rest[name].(string); ok && v != "" {
			o.Params[name] = v
			delete(rest, name)
		}
	}
	if len(o.Params) > 0 {
		f.Values["offer"], f.Offered = OfferValue(o), OfferedAt(string(m.SourceType), m.SourcePath)
	}
	if len(rest) == 0 {
		return nil
	}
	return rest
}

// lower is the way back: it puts what the fields say into the model's parameters. What was filled in for, or chosen at,
// another path than is given now is left out.
func (f *Form) lower(in url.Values, model map[string]any) (errs []registry.FieldError) {
	params, _ := model["custom_loader_params"].(map[string]any)
	if params == nil {
		params = map[string]any{}
	}
	put := func(name, value string) {
		if given, twice := params[name]; twice && given != value {
			errs = append(errs, registry.FieldError{Field: "custom_loader_params", Msg: fmt.Sprintf("has %s, too, and %q is chosen above. Leave one of them out", name, value)})
			return
		}
		params[name] = value
	}
	for _, p := range SourceParams {
		v := strings.TrimSpace(in.Get(p.Field()))
		if v == "" {
			continue
		}
		f.Values[p.Field()] = v
		switch {
		case !p.Of(f.Values["source_type"]):
		case p.Secret && !registry.IsReference(v):
			errs = append(errs, registry.FieldError{Field: "custom_loader_params." + p.Name, Msg: "must name a stored secret"})
		default:
			put(p.Name, v)
		}
	}
	here := OfferedAt(f.Values["source_type"], f.Values["source_path"])
	f.Filled = map[string]string{}
	for _, name := range []string{"model_id", "model_format"} {
		was := in.Get("filled_" + name)
		if was == "" || f.Values[name] != was {
			continue
		}
		if in.Get("offered") == here {
			f.Filled[name] = was
			continue
		}
		delete(f.Values, name)
		delete(model, name)
	}
	if offer, err := url.ParseQuery(in.Get("offer")); err == nil && in.Get("offer") != "" && in.Get("offered") == here {
		format := offer.Get("model_format")
		if now := f.Values["model_format"]; now == "" || now == format || now == f.Filled["model_format"] {
			f.Values["offer"], f.Offered = in.Get("offer"), here
			if now != "" && now == f.Filled["model_format"] {
				f.Filled["model_format"] = format
			}
			f.Values["model_format"], model["model_format"] = format, format
			for _, name := range choosers {
				if v := offer.Get(name); v != "" {
					put(name, v)
				}
			}
		}
	}
	if len(params) > 0 {
		model["custom_loader_params"] = params
	}
	return errs
}

// paramError puts an error about a parameter to its field, or to the one of all the others.
func (f *Form) paramError(param, msg string) {
	for _, p := range SourceParams {
		if p.Name == param && p.Of(f.Values["source_type"]) && f.Values[p.Field()] != "" {
			f.Errors[p.Field()] = p.Label + " " + msg + "."
			return
		}
	}
	f.Errors["custom_loader_params"] = strings.TrimSpace(f.Errors["custom_loader_params"] + " " + param + " " + msg + ".")
}

// SecretOptions are the references that a field may hold: to the stored secrets, and what it holds already.
func (f Form) SecretOptions(field string) []string {
	var out []string
	for _, s := range f.Secrets {
		if ref := "secret:" + s.Name; !slices.Contains(out, ref) {
			out = append(out, ref)
		}
	}
	if v := f.Values[field]; v != "" && !slices.Contains(out, v) {
		out = append(out, v)
	}
	return out
}

// SecretLabel writes a reference for people.
func SecretLabel(ref string) string {
	if name, ok := registry.SecretReference(ref); ok {
		return name
	}
	return ref
}

// OtherParams are a model's parameters that have no field of their own, with the secrets that were typed into them.
func OtherParams(m registry.Model) map[string]any {
	var f Form
	f.Values = map[string]string{}
	rest := f.lift(m)
	if rest == nil {
		rest = map[string]any{}
	}
	return rest
}

// Choose puts the parameters that choose one of several models, as a look-up found them, into what a form sent.
func Choose(values map[string]any, found registry.Model) {
	params, _ := values["custom_loader_params"].(map[string]any)
	if params == nil {
		params = map[string]any{}
	}
	for _, name := range choosers {
		if v, ok := found.CustomLoaderParams[name]; ok && params[name] == nil {
			params[name] = v
		}
	}
	if len(params) > 0 {
		values["custom_loader_params"] = params
	}
}
