package archtest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/industriverse/llmmodelmanager"

// The rooms of each floor. A room is a folder below internal/ with all that is below it.
var (
	floor1 = []string{"internal/netaddr", "internal/store", "internal/sources", "internal/loaders", "internal/hw", "internal/events", "internal/manifest"}
	floor2 = []string{"internal/manager"}
	floor3 = []string{"internal/auth", "internal/gateway", "internal/server"}
)

// mayImport says which rooms a room may use, itself not counted. A room that is not here fails the test: somebody has
// to decide where it belongs.
var mayImport = map[string][]string{
	"internal/registry": nil,
	"internal/netaddr":  nil, // standard library only

	"internal/store":    {"internal/registry", "migrations"},
	"internal/sources":  {"internal/registry", "internal/netaddr"},
	"internal/loaders":  {"internal/registry", "internal/netaddr"},
	"internal/hw":       {"internal/registry"},
	"internal/events":   {"internal/registry"},
	"internal/manifest": {"internal/registry"},

	// Who uses the store depends on its migrations through it.
	"internal/manager": rooms([]string{"internal/registry", "migrations"}, floor1),

	"internal/auth":    rooms([]string{"internal/registry", "migrations"}, floor1, floor2),
	"internal/gateway": rooms([]string{"internal/registry", "migrations", "internal/auth"}, floor1, floor2),
	"internal/server":  rooms([]string{"internal/registry", "migrations", "internal/auth", "internal/gateway", "web"}, floor1, floor2),

	"internal/cli": rooms([]string{"internal/registry", "web", "migrations"}, floor1, floor2, floor3),

	"internal/archtest": nil,
	"migrations":        nil,
	"web":               {"internal/registry"}, // templates, view models and static files
	".":                 {"internal/cli"},      // main.go
}

// onlyIn says which library belongs to which room.
var onlyIn = map[string]string{
	"github.com/labstack/":               "internal/server",
	"gorm.io/":                           "internal/store",
	"github.com/NVIDIA/go-nvml":          "internal/hw",
	"github.com/ollama/ollama":           "internal/loaders",
	"github.com/alecthomas/kong":         "internal/cli",
	"github.com/chromedp/":               "", // tests only
	"pgregory.net/rapid":                 "",
	"go.uber.org/goleak":                 "",
	"github.com/google/go-cmp":           "",
	"github.com/rogpeppe/go-internal":    "",
	"github.com/PuerkitoBio/goquery":     "",
	"github.com/stretchr/testify":        "",
	"github.com/hashicorp/go-multierror": "",
}

func rooms(lists ...[]string) []string { return slices.Concat(lists...) }

type pkg struct {
	ImportPath   string
	Name         string
	Dir          string
	Standard     bool
	Imports      []string
	Deps         []string
	GoFiles      []string
	CgoFiles     []string
	TestGoFiles  []string
	XTestGoFiles []string
}

// path returns the package's folder in the module, "." for the root.
func (p pkg) path() string { return ours(p.ImportPath) }

// ours returns the folder of one of our packages, "" for any other.
func ours(importPath string) string {
	if importPath == module {
		return "."
	}
	rest, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	return rest
}

// room returns the room that a folder belongs to: internal/store for internal/store/storetest, cmd for cmd/bench.
func room(path string) string {
	parts := strings.Split(path, "/")
	if parts[0] == "internal" && len(parts) > 1 {
		return parts[0] + "/" + parts[1]
	}
	return parts[0]
}

// support tells whether a package is there for tests only, as its name says: storetest, loadertest.
func support(path string) bool { return strings.HasSuffix(path, "test") }

// watchTree looks at every folder of the tree. go test keeps a result until something that the test itself looked at
// has changed, and it does not see what go list reads.
func watchTree(t *testing.T) {
	t.Helper()
	root := filepath.Join("..", "..")
	for _, dir := range []string{"internal", "cmd", "web", "migrations", "test", "tools", "go.mod", "main.go"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(string, os.DirEntry, error) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
}

// list runs go list over the module and what it depends on.
func list(t *testing.T) (all map[string]pkg, mine []pkg) {
	t.Helper()
	watchTree(t)
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-deps", "-json=ImportPath,Name,Dir,Standard,Imports,Deps,GoFiles,CgoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	all = map[string]pkg{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
		if p.path() != "" {
			mine = append(mine, p)
		}
	}
	if len(mine) < 5 {
		t.Fatalf("go list found %d packages of ours", len(mine))
	}
	return all, mine
}

func TestImportsGoOneWay(t *testing.T) {
	all, mine := list(t)
	for _, p := range mine {
		from := room(p.path())
		allowed, known := mayImport[from]
		if !known && from != "cmd" && from != "test" {
			t.Errorf("%s is a room that mayImport does not know; decide on which floor it is", from)
			continue
		}
		for _, dep := range p.Deps {
			to := ours(dep)
			if to == "" || room(to) == from {
				continue
			}
			switch {
			case room(to) == "cmd":
				t.Errorf("%s imports %s, a program", p.path(), to)
			case from == "cmd" || from == "test" || support(p.path()):
			case support(to):
				t.Errorf("%s imports %s, which is for tests", p.path(), to)
			case from == ".": // main.go gets everything through internal/cli
			case !slices.Contains(allowed, room(to)):
				t.Errorf("%s may not depend on %s", p.path(), to)
			}
		}
		for _, imp := range p.Imports {
			if from == "." && ours(imp) != "" && room(ours(imp)) != "internal/cli" {
				t.Errorf("main.go may import internal/cli only, not %s", imp)
			}
			for lib, home := range onlyIn {
				tool := home == "" && (from == "cmd" || support(p.path()))
				if strings.HasPrefix(imp, lib) && from != home && !tool {
					t.Errorf("%s may not import %s; it belongs to %s", p.path(), imp, orTests(home))
				}
			}
			if from == "internal/registry" && !all[imp].Standard {
				t.Errorf("%s imports %s; the domain needs the standard library only", p.path(), imp)
			}
		}
	}
}

func orTests(home string) string {
	if home == "" {
		return "tests"
	}
	return home
}

func TestPackageNamesSaySomething(t *testing.T) {
	empty := []string{"util", "utils", "common", "helper", "helpers", "misc", "shared", "lib", "base"}
	_, mine := list(t)
	for _, p := range mine {
		if slices.Contains(empty, p.Name) || slices.Contains(empty, filepath.Base(p.path())) {
			t.Errorf("%s: the name says nothing about what is in it", p.path())
		}
	}
}

// TestNoInit: nothing registers itself or works before main. Generated files are held to it, too.
func TestNoInit(t *testing.T) {
	_, mine := list(t)
	for _, p := range mine {
		for _, name := range slices.Concat(p.GoFiles, p.CgoFiles, p.TestGoFiles, p.XTestGoFiles) {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s: func init is not used here; call it from where it is needed", fset.Position(fn.Pos()))
				}
			}
		}
	}
}

// TestOneTempl: the generator and the library that its code runs on are one version.
func TestOneTempl(t *testing.T) {
	line := regexp.MustCompile(`(?m)^\s*(?:require )?github\.com/a-h/templ (v\S+)`)
	version := func(path string) string {
		b, err := os.ReadFile(filepath.Join("..", "..", path))
		if err != nil {
			t.Fatal(err)
		}
		m := line.FindSubmatch(b)
		if m == nil {
			t.Fatalf("%s does not name templ", path)
		}
		return string(m[1])
	}
	if a, b := version("go.mod"), version("tools/go.mod"); a != b {
		t.Errorf("go.mod has templ %s, tools/go.mod has %s", a, b)
	}
}
