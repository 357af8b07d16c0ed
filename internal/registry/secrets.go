package registry

import (
	"regexp"
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
			// A reference such as ${HF_TOKEN} names a secret and is none.
			if s, ok := v.(string); !ok || !isReference(s) {
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

var reference = regexp.MustCompile(`^\$\{[A-Za-z_][A-Za-z0-9_]*\}$`)

func isReference(s string) bool { return reference.MatchString(s) }

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
