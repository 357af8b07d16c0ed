package fetch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// SyncFolder makes renames and new names in a folder outlive a power loss. A Commit calls it for the folder that it moves
// the file into.
func SyncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // some file systems cannot, and say so
		return err
	}
	return nil
}

// volume is the part of a job that goes to one file system.
type volume struct {
	folder string // one of those on it, for messages
	needed int64  // bytes that are still to be written
}

// checkSpace looks whether what remains of the files fits and leaves minFree bytes. Partial files that have grown
// already count for what they take. CodeInsufficientResources when it does not fit.
func checkSpace(files []*file, minFree int64) error {
	volumes := map[uint64]*volume{}
	for _, f := range files {
		dir := filepath.Dir(f.Partial)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return folderError(dir, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return folderError(dir, err)
		}
		v := volumes[st.Dev]
		if v == nil {
			v = &volume{folder: dir}
			volumes[st.Dev] = v
		}
		v.needed += f.Size
		if unix.Stat(f.Partial, &st) == nil {
			v.needed -= min(f.Size, st.Blocks*512)
		}
	}
	for _, v := range volumes {
		free, total, err := diskFree(v.folder)
		if err != nil {
			return folderError(v.folder, err)
		}
		if v.needed > 0 && free < v.needed+minFree {
			return shortage(v.folder, v.needed, free, total, minFree)
		}
	}
	return nil
}

// diskFree returns the bytes that may still be written to the file system of a folder, and its size.
func diskFree(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

func shortage(dir string, needed, free, total, minFree int64) error {
	keep := ""
	if minFree > 0 {
		keep = fmt.Sprintf(" (%s are kept free for everything else)", registry.Bytes(minFree))
	}
	short := max(needed+minFree-free, 1)
	return &registry.Error{
		Code: registry.CodeInsufficientResources, Op: "fetch",
		Msg: fmt.Sprintf("the disk of %s has no room: %s more are needed and %s are free%s; delete artifacts that nobody uses or make %s of room, then fetch again: what is there already is kept",
			dir, registry.Bytes(needed), registry.Bytes(free), keep, registry.Bytes(short)),
		Shortage: &registry.Shortage{Device: "disk", Needed: needed, Free: free, Short: short, Total: total},
	}
}

// folderError says what is wrong with a folder that files are to be written to.
func folderError(dir string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &registry.Error{Code: registry.CodeUnavailable, Op: "fetch", Err: err,
			Msg: fmt.Sprintf("the folder %s may not be written to; give the user that runs llmm write permission to it, or choose another folder", dir)}
	case errors.Is(err, unix.EROFS):
		return &registry.Error{Code: registry.CodeUnavailable, Op: "fetch", Err: err,
			Msg: fmt.Sprintf("the folder %s is on a file system that is mounted read-only; mount it writable or choose another folder", dir)}
	}
	return &registry.Error{Code: registry.CodeUnavailable, Op: "fetch", Err: err,
		Msg: fmt.Sprintf("the folder %s cannot be used: %s; check the disk or choose another folder", dir, plain(err))}
}

// diskError makes an error of one that the file system gave for a file of ours. needed is what remains to be written.
func diskError(path string, needed, minFree int64, err error) error {
	dir := filepath.Dir(path)
	switch {
	case errors.Is(err, unix.ENOSPC):
		free, total, _ := diskFree(dir) // 0 is as good an answer when even that fails
		return shortage(dir, needed, free, total, minFree)
	case errors.Is(err, unix.EDQUOT):
		return &registry.Error{
			Code: registry.CodeInsufficientResources, Op: "fetch", Err: err,
			Msg: fmt.Sprintf("the disk quota in %s is used up and %s more are needed; delete artifacts that nobody uses or ask for a larger quota, then fetch again: what is there already is kept",
				dir, registry.Bytes(needed)),
			Shortage: &registry.Shortage{Device: "disk", Needed: needed, Short: needed},
		}
	case errors.Is(err, unix.EFBIG):
		return &registry.Error{Code: registry.CodeUnavailable, Op: "fetch", Err: err,
			Msg: fmt.Sprintf("the file system of %s, or a limit of this process, does not allow files as large as this one; choose another folder", dir)}
	}
	return folderError(dir, err)
}

// plain is an error without the path and the system call, which its message names already.
func plain(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return strings.TrimSpace(err.Error())
}
