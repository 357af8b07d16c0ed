package registry

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Redaction stands where a secret was.
const Redaction = "[redacted]"

// secretWords are looked for in names in lower case, with everything but letters and digits left out: X-Api-Key and
// apiKey are one name.
var secretWords = []string{
	"token", "secret", "password", "passwd", "passphrase", "apikey", "accesskey", "privatekey", "authkey", "credential",
	"authorization", "bearer", "cookie",
}

// notSecret are names of loader parameters that contain a secret word and are none.
var notSecret = map[string]bool{"maxtokens": true, "maxnewtokens": true, "tokens": true, "ntokens": true}

// IsSecretName reports whether a parameter of this name holds a secret (auth_token, api_key, …).
func IsSecretName(name string) bool {
	n := strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, name)
	if notSecret[n] || strings.HasPrefix(n, "tokenizer") {
		return false
	}
	for _, w := range secretWords {
		if strings.Contains(n, w) {
			return true
		}
	}
	return false
}

func redactMap(in map[string]any) map[string]any {
	if in == nil {
		return nil
	}
	out := make(map[string]any, len(in))
	for k, v := range in {
		if IsSecretName(k) {
			// A reference such as secret:hub or ${HF_TOKEN} names a secret and is none.
			if s, ok := v.(string); !ok || !IsReference(s) {
				out[k] = Redaction
				continue
			}
		}
		out[k] = redactValue(v)
	}
	return out
}

func redactValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		return redactMap(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = redactValue(v[i])
		}
		return out
	}
	return v
}

var reference = regexp.MustCompile(`^(\$\{[A-Za-z_][A-Za-z0-9_]*\}|secret:[A-Za-z0-9][A-Za-z0-9._-]{0,63})$`)

// IsReference reports whether the value of a secret parameter names a secret, as secret:hub or ${HF_TOKEN} do, and so is
// none itself.
func IsReference(s string) bool { return reference.MatchString(s) }

// secretPrefix is what a value begins with that names a stored secret.
const secretPrefix = "secret:"

// SecretReference returns the name of the stored secret that a value refers to, as in secret:hub.
func SecretReference(value string) (name string, ok bool) {
	name, ok = strings.CutPrefix(value, secretPrefix)
	return name, ok
}

var secretName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// ValidateSecretName checks the name of a stored secret: 1 to 64 letters, digits and . _ -, the first a letter or digit.
func ValidateSecretName(name string) error {
	if !secretName.MatchString(name) {
		return errors.New("must be 1 to 64 letters, digits and . _ -, and begin with a letter or digit")
	}
	return nil
}

// ReplaceSecrets returns a copy of loader parameters in which every reference to a stored secret in a secret parameter,
// at any depth, is replaced by what lookup returns for its name. field is the parameter's place, such as
// custom_loader_params.auth_token. The first error of lookup ends it.
func ReplaceSecrets(params map[string]any, lookup func(field, name string) (string, error)) (map[string]any, error) {
	return replaceSecrets("custom_loader_params", params, lookup)
}

// SecretNames returns the names of the stored secrets that loader parameters refer to, each once.
func SecretNames(params map[string]any) []string {
	var names []string
	_, _ = ReplaceSecrets(params, func(_, name string) (string, error) { // lookup never fails
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		return "", nil
	})
	slices.Sort(names)
	return names
}

func replaceSecrets(at string, in map[string]any, lookup func(field, name string) (string, error)) (map[string]any, error) {
	if in == nil {
		return nil, nil
	}
	out := make(map[string]any, len(in))
	for k, v := range in {
		field := at + "." + k
		if s, ok := v.(string); ok && IsSecretName(k) {
			if name, is := SecretReference(s); is {
				value, err := lookup(field, name)
				if err != nil {
					return nil, err
				}
				v = value
			}
		}
		inner, err := replaceIn(field, v, lookup)
		if err != nil {
			return nil, err
		}
		out[k] = inner
	}
	return out, nil
}

func replaceIn(at string, v any, lookup func(field, name string) (string, error)) (any, error) {
	switch v := v.(type) {
	case map[string]any:
		return replaceSecrets(at, v, lookup)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			inner, err := replaceIn(at, v[i], lookup)
			if err != nil {
				return nil, err
			}
			out[i] = inner
		}
		return out, nil
	}
	return v, nil
}

// KeepSecrets puts back the secrets that a form or an edit returned redacted. In a list they are found by their
// place, and only if the list has kept its length.
func KeepSecrets(edited, stored map[string]any) map[string]any {
	if edited == nil {
		return nil
	}
	out := make(map[string]any, len(edited))
	for k, v := range edited {
		old, had := stored[k]
		if s, ok := v.(string); ok && s == Redaction && had {
			out[k] = old
			continue
		}
		out[k] = keepValue(v, old)
	}
	return out
}

func keepValue(v, old any) any {
	switch v := v.(type) {
	case map[string]any:
		m, _ := old.(map[string]any)
		return KeepSecrets(v, m)
	case []any:
		was, _ := old.([]any)
		if len(was) != len(v) {
			return v
		}
		out := make([]any, len(v))
		for i := range v {
			out[i] = keepValue(v[i], was[i])
		}
		return out
	}
	return v
}
