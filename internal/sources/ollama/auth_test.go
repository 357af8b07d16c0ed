package ollama

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestReadChallenges(t *testing.T) {
	for in, want := range map[string][]challenge{
		`Bearer realm="https://auth.example/token",service="r",scope="repository:a/b:pull,push"`: {
			{"bearer", map[string]string{"realm": "https://auth.example/token", "service": "r", "scope": "repository:a/b:pull,push"}}},
		`Basic realm="x y", charset=UTF-8`:                {{"basic", map[string]string{"realm": "x y", "charset": "UTF-8"}}},
		`Negotiate, Basic realm=x, Bearer realm = "y\"z"`: {{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": "x"}}, {"bearer", map[string]string{"realm": `y"z`}}},
		`Bearer realm="never closed`:                      {{"bearer", map[string]string{"realm": "never closed"}}},
		`Bearer`:                                          {{"bearer", map[string]string{}}},
		`="x"`:                                            nil,
		``:                                                nil,
		`realm="x"`:                                       {{"realm", map[string]string{}}},
	} {
		if d := cmp.Diff(want, readChallenges([]string{in}), cmp.AllowUnexported(challenge{})); d != "" {
			t.Errorf("%s:\n%s", in, d)
		}
	}
}

func FuzzReadChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://auth.example/token",service="r",scope="s"`)
	f.Add(`Negotiate, Basic realm=x, Bearer realm = "y\"z"`)
	f.Add(`a="\`)
	f.Add(strings.Repeat(`b c="d",`, 100))
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range readChallenges([]string{s, s}) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) {
				t.Fatalf("the scheme %q of %q", c.scheme, s)
			}
		}
	})
}

func TestReadCredentials(t *testing.T) {
	for name, c := range map[string]struct {
		params map[string]any
		want   credentials
		faulty string // field
	}{
		"none":              {nil, credentials{}, ""},
		"others":            {map[string]any{"n_gpu_layers": 4}, credentials{}, ""},
		"a user":            {map[string]any{"username": "u", "password": " p "}, credentials{username: "u", password: "p"}, ""},
		"a token":           {map[string]any{"auth_token": "t"}, credentials{token: "t"}, ""},
		"a token with user": {map[string]any{"auth_token": "t", "username": "u"}, credentials{username: "u", token: "t"}, ""},
		"null":              {map[string]any{"auth_token": nil}, credentials{}, ""},
		"both":              {map[string]any{"auth_token": "t", "username": "u", "password": "p"}, credentials{}, "auth_token"},
		"a lonely password": {map[string]any{"password": "p"}, credentials{}, "username"},
		"a lonely user":     {map[string]any{"username": "u"}, credentials{}, "password"},
		"a number":          {map[string]any{"auth_token": 7}, credentials{}, "auth_token"},
		"a header smuggled": {map[string]any{"auth_token": "t\r\nX-Evil: 1"}, credentials{}, "auth_token"},
		"a user with colon": {map[string]any{"username": "u:x", "password": "p"}, credentials{}, "username"},
	} {
		got, errs := readCredentials(c.params)
		switch {
		case c.faulty == "" && (len(errs) > 0 || got != c.want):
			t.Errorf("%s: %+v, %v", name, got, errs)
		case c.faulty != "" && (len(errs) != 1 || errs[0].Field != "custom_loader_params."+c.faulty):
			t.Errorf("%s: %v, want one about %s", name, errs, c.faulty)
		}
	}
	for _, name := range []string{paramPassword, paramToken} {
		if !registry.IsSecretName(name) {
			t.Errorf("%s would be shown", name)
		}
	}
}
