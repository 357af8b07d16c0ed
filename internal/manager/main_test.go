package manager

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// Environment of this test binary when it plays a server that is going to be killed; see kill_test.go.
const (
	envEngine = "LLMM_TEST_FAKEENGINE"
	envVictim = "LLMM_TEST_VICTIM"
)

// engineBinary is the fake engine, built once.
var engineBinary string

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	flag.Parse()
	if err := flag.Set("rapid.nofailfile", "true"); err != nil { // the seed is in the output
		fmt.Println(err)
		return 1
	}
	if engineBinary = os.Getenv(envEngine); engineBinary == "" {
		dir, err := os.MkdirTemp("", "fakeengine")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		engineBinary = filepath.Join(dir, "fakeengine")
		if out, err := exec.Command("go", "build", "-o", engineBinary, "github.com/industriverse/llmmodelmanager/cmd/fakeengine").CombinedOutput(); err != nil { //nolint:noctx // go test ends it
			fmt.Printf("go build: %v\n%s", err, out)
			return 1
		}
	}
	if dir := os.Getenv(envVictim); dir != "" {
		return victim(dir)
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Println(err)
		return 1
	}
	return code
}
