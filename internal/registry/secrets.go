package registry

import "strings"

// Redaction stands where a secret was.
const Redaction = "[redacted]"

var secretWords = []string{"token", "secret", "password", "passwd", "api_key", "apikey", "access_key", "private_key", "credential", "authorization"}

// notSecret are names of loader parameters that contain a secret word and are none.
var notSecret = map[string]bool{"max_tokens": true, "max_new_tokens": true, "tokenizer": true, "tokens": true, "n_tokens": true}

// IsSecretName reports whether a parameter of this name holds a secret (auth_token, api_key, …).
func IsSecretName(name string) bool {
	n := strings.ToLower(strings.ReplaceAll(name, "-", "_"))
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

func isReference(s string) bool { return strings.HasPrefix(s, "${") && strings.HasSuffix(s, "}") }

// KeepSecrets puts back the secrets that a form or an edit returned redacted.
func KeepSecrets(edited, stored map[string]any) map[string]any {
	if edited == nil {
		return nil
	}
	out := make(map[string]any, len(edited))
	for k, v := range edited {
		if s, ok := v.(string); ok && s == Redaction {
			if old, had := stored[k]; had {
				out[k] = old
				continue
			}
		}
		if m, ok := v.(map[string]any); ok {
			old, _ := stored[k].(map[string]any)
			v = KeepSecrets(m, old)
		}
		out[k] = v
	}
	return out
}
