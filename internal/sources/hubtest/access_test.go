package hubtest_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
)

// TestPythonRefusals holds every way in which a Hub says no against what the client makes of it.
func TestPythonRefusals(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{Tokens: map[string]string{"hf_alice": "alice", "hf_bob": "bob"}})
	files := map[string][]byte{"config.json": []byte("{}"), "model.safetensors": make([]byte, 1000)}
	for _, id := range []string{"org/open", "org/gated", "org/private", "org/disabled", "org/new"} {
		h.Put(t, id, files)
	}
	h.Set(t, "org/gated", hubtest.Settings{Gated: "manual", Authorized: []string{"alice"}})
	h.Set(t, "org/private", hubtest.Settings{Private: true, Authorized: []string{"alice"}})
	h.Set(t, "org/disabled", hubtest.Settings{Disabled: true})
	h.Set(t, "org/old", hubtest.Settings{RenamedTo: "org/new"})
	h.Set(t, "old", hubtest.Settings{RenamedTo: "org/new"})
	cases := []struct{ name, call, token, want string }{
		{"open", `snapshot_download("org/open")`, "", "-"},
		{"gated, anonymous", `snapshot_download("org/gated")`, "", "GatedRepoError 401"},
		{"gated, not granted", `snapshot_download("org/gated")`, "hf_bob", "GatedRepoError 403"},
		{"gated, one file", `hf_hub_download("org/gated", "config.json")`, "hf_bob", "GatedRepoError 403"},
		{"gated, granted", `snapshot_download("org/gated")`, "hf_alice", "-"},
		{"gated, its information is open", `HfApi().model_info("org/gated")`, "", "-"},
		{"gated, the check", `HfApi().auth_check("org/gated")`, "hf_bob", "GatedRepoError 403"},
		{"private, anonymous", `snapshot_download("org/private")`, "", "RepositoryNotFoundError 401"},
		{"private, of others", `snapshot_download("org/private")`, "hf_bob", "RepositoryNotFoundError 404"},
		{"private, ours", `snapshot_download("org/private")`, "hf_alice", "-"},
		{"disabled", `HfApi().model_info("org/disabled")`, "hf_alice", "DisabledRepoError 403"},
		{"missing, anonymous", `snapshot_download("org/nothing")`, "", "RepositoryNotFoundError 401"},
		{"missing", `snapshot_download("org/nothing")`, "hf_alice", "RepositoryNotFoundError 404"},
		{"missing revision", `snapshot_download("org/open", revision="nope")`, "", "RevisionNotFoundError 404"},
		{"missing file", `hf_hub_download("org/open", "nope.json")`, "", "RemoteEntryNotFoundError 404"},
		{"missing folder", `list(HfApi().list_repo_tree("org/open", "nope"))`, "", "RemoteEntryNotFoundError 404"},
		{"unknown token", `HfApi().whoami()`, "hf_wrong", "HfHubHTTPError 401"},
		{"unknown token, open repository", `HfApi().model_info("org/open")`, "hf_wrong", "HfHubHTTPError 401"},
		{"renamed", `snapshot_download("org/old")`, "", "-"},
		{"renamed, one large file", `hf_hub_download("org/old", "model.safetensors")`, "", "-"},
		{"renamed, without an organisation", `hf_hub_download("old", "config.json")`, "", "-"},
	}
	// All in one process: it takes a second to start.
	program := `
import os
from huggingface_hub import snapshot_download, hf_hub_download, HfApi
from huggingface_hub.errors import HfHubHTTPError
def attempt(token, call):
    os.environ["HF_TOKEN"] = token
    try:
        call()
        print("-")
    except HfHubHTTPError as e:
        print(type(e).__name__, e.response.status_code)
`
	for _, c := range cases {
		program += fmt.Sprintf("attempt(%q, lambda: %s)\n", c.token, c.call)
	}
	out := strings.Split(run(t, h, t.TempDir(), program+`print("end")`), "\n")
	if len(out) != len(cases)+1 {
		t.Fatalf("%d cases, and as answers %q", len(cases), out)
	}
	for i, c := range cases {
		if out[i] != c.want {
			t.Errorf("%s: %s ends with %q, want %q", c.name, c.call, out[i], c.want)
		}
	}
	if s := h.Served(); len(s.CDNTokens) > 0 || len(s.HubTokens) != 3 {
		t.Errorf("the Hub saw the tokens %q, the second host %q", s.HubTokens, s.CDNTokens)
	}
}

// TestPythonRemembersWhatIsNotThere: a missing file's answer carries the commit, and the client keeps note of it.
func TestPythonRemembersWhatIsNotThere(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{})
	commit := h.Put(t, "org/open", map[string][]byte{"config.json": []byte("{}")})
	out := run(t, h, t.TempDir(), `
import os
from huggingface_hub import hf_hub_download, constants, try_to_load_from_cache, _CACHED_NO_EXIST
try: hf_hub_download("org/open", "nope.json")
except Exception: pass
print(try_to_load_from_cache("org/open", "nope.json") is _CACHED_NO_EXIST, *os.listdir(constants.HF_HUB_CACHE + "/models--org--open/.no_exist"))`)
	if out != "True "+commit {
		t.Errorf("the client noted %q", out)
	}
}

// TestPythonRateLimit: a quota that is used up is a 429 that says when to come back, and the client does.
func TestPythonRateLimit(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{APIQuota: 2, Window: 3e9})
	h.Put(t, "org/open", map[string][]byte{"config.json": []byte("{}")})
	out := run(t, h, t.TempDir(), `
from huggingface_hub import HfApi
from huggingface_hub.utils import get_session, parse_ratelimit_headers
from huggingface_hub.errors import HfHubHTTPError
api = HfApi()
for n in range(9):
    try: api.model_info("org/open")
    except HfHubHTTPError as e:
        info = parse_ratelimit_headers(e.response.headers)
        assert info.remaining == 0 and info.limit == 2 and info.window_seconds == 3 and 0 < info.reset_in_seconds <= 3, info
        print("limited", e.response.status_code, info.resource_type)
        break
print(len(list(api.list_repo_tree("org/open"))))
`)
	if out != "limited 429 api\n1" {
		t.Errorf("the client says %q", out)
	}
}

func TestGatedOption(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{Gated: []string{"org/g"}, Tokens: map[string]string{"hf_alice": "alice"}})
	h.Put(t, "org/g", map[string][]byte{"config.json": []byte("{}")})
	if status, _, _ := get(t, h.URL+"/org/g/resolve/main/config.json", nil); status != 401 {
		t.Errorf("an anonymous visitor gets %d", status)
	}
	status, _, body := get(t, h.URL+"/org/g/resolve/main/config.json", map[string]string{"Authorization": "Bearer hf_alice"})
	if status != 200 || strings.TrimSpace(string(body)) != "{}" {
		t.Errorf("the owner of a token gets %d %q", status, body)
	}
}
