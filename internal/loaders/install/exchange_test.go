package install

import (
	"os"
	"path/filepath"
	"testing"
)

// folders makes two folders, each with a file that says which it is; one that is "" is not made.
func folders(t *testing.T, fresh, final string) (freshAt, finalAt string) {
	t.Helper()
	dir := t.TempDir()
	freshAt, finalAt = filepath.Join(dir, "fresh"), filepath.Join(dir, "final")
	for at, says := range map[string]string{freshAt: fresh, finalAt: final} {
		if says == "" {
			continue
		}
		if err := os.Mkdir(at, 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, "who"), []byte(says), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return freshAt, finalAt
}

func who(t *testing.T, at string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(at, "who"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

func TestExchange(t *testing.T) {
	for how, exchange := range map[string]func(fresh, final string) error{"in one step": Exchange, "by renames": exchangeByRenames} {
		fresh, final := folders(t, "new", "old")
		if err := exchange(fresh, final); err != nil || who(t, final) != "new" || who(t, fresh) != "old" {
			t.Errorf("%s: %v; in place is %q, beside it %q", how, err, who(t, final), who(t, fresh))
		}
		fresh, final = folders(t, "", "old")
		if err := exchange(fresh, final); err == nil || who(t, final) != "old" {
			t.Errorf("%s with nothing: %v; in place is %q", how, err, who(t, final))
		}
		if left, err := os.ReadDir(filepath.Dir(final)); err != nil || len(left) != 1 {
			t.Errorf("%s with nothing leaves %v, %v", how, left, err)
		}
	}
	fresh, final := folders(t, "new", "")
	if err := Exchange(fresh, final); err != nil || who(t, final) != "new" || who(t, fresh) != "" {
		t.Errorf("where there was nothing: %v; in place is %q", err, who(t, final))
	}
}

// TestExchangeLeavesNoGap looks at the place all the while that folders are exchanged: something whole is always there.
func TestExchangeLeavesNoGap(t *testing.T) {
	fresh, final := folders(t, "one", "two")
	over := make(chan error)
	go func() {
		for range 500 {
			if err := Exchange(fresh, final); err != nil {
				over <- err
				return
			}
		}
		over <- nil
	}()
	for {
		if _, err := os.Stat(final); err != nil {
			t.Error(err)
		}
		select {
		case err := <-over:
			if err != nil {
				t.Error(err)
			}
			return
		default:
		}
	}
}
