package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Exchange puts the folder fresh in the place of final, on the same file system. Where the kernel and the file system can,
// it is one step, so that at every moment a whole folder is there, whenever the machine stops. What was there lies at fresh
// afterwards; if nothing was, nothing does. On error final is what it was.
func Exchange(fresh, final string) error {
	if _, err := os.Lstat(final); errors.Is(err, fs.ErrNotExist) {
		return os.Rename(fresh, final)
	}
	err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, final, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		return exchangeByRenames(fresh, final)
	}
	if err != nil {
		return fmt.Errorf("exchange %s and %s: %w", fresh, final, err)
	}
	return nil
}

// exchangeByRenames is for file systems that do not exchange, as some of networks. There is a moment without final.
func exchangeByRenames(fresh, final string) error {
	aside := fresh + ".replaced"
	if err := os.RemoveAll(aside); err != nil { // of one that the machine's end cut short
		return err
	}
	if err := os.Rename(final, aside); err != nil {
		return err
	}
	if err := os.Rename(fresh, final); err != nil {
		return errors.Join(err, os.Rename(aside, final))
	}
	return os.Rename(aside, fresh)
}
