package ext4

import (
	"fmt"
	"io/fs"
	"strings"
)

// Limits of what is looked at.
const (
	maxDir     = 16 << 20 // bytes of a directory
	maxSymlink = 4096     // bytes of a symbolic link
	maxLinks   = 40       // symbolic links on the way to a file, as in Linux
	maxParts   = 256      // names on that way
)

// ReadFile returns what is in a regular file of at most limit bytes. Its name
// begins at the root of the file system; symbolic links are followed. Errors are
// fs.ErrNotExist, ErrTooLarge, ErrCorrupt and those of the reader, and name the file.
func (f *FS) ReadFile(name string, limit int64) ([]byte, error) {
	i, err := f.lookup(name)
	if err == nil && i.mode&modeType != modeRegular {
		err = fmt.Errorf("no regular file")
	}
	var b []byte
	if err == nil {
		b, err = f.data(i, limit)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return b, nil
}

// ReadDir returns the names in a directory, in no order, without . and ..
func (f *FS) ReadDir(name string) ([]string, error) {
	i, err := f.lookup(name)
	var names []string
	if err == nil {
		err = f.entries(i, func(name string, _ uint32) bool {
			if name != "." && name != ".." {
				names = append(names, name)
			}
			return true
		})
	}
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return names, nil
}

// Exists reports whether there is a file or directory of that name.
func (f *FS) Exists(name string) bool {
	_, err := f.lookup(name)
	return err == nil
}

// lookup finds a file.
func (f *FS) lookup(name string) (*inode, error) {
	rest := strings.Split(name, "/")
	links := 0
	here, err := f.inode(rootInode)
	if err != nil {
		return nil, err
	}
	// The directories down to here, so that .. needs no trust in the image.
	path := []*inode{here}
	for steps := 0; len(rest) > 0; steps++ {
		if steps > maxLinks*maxParts || len(rest) > maxParts {
			return nil, fmt.Errorf("too long a name")
		}
		part := rest[0]
		rest = rest[1:]
		here = path[len(path)-1]
		switch part {
		case "", ".":
			continue
		case "..":
			path = path[:max(1, len(path)-1)]
			continue
		}
		next, err := f.child(here, part)
		if err != nil {
			return nil, err
		}
		if next.mode&modeType != modeSymlink {
			path = append(path, next)
			continue
		}
		if links++; links > maxLinks {
			return nil, fmt.Errorf("too many symbolic links")
		}
		target, err := f.target(next)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(target, "/") {
			path = path[:1]
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return path[len(path)-1], nil
}

// child finds a name in a directory.
func (f *FS) child(dir *inode, name string) (*inode, error) {
	var found uint32
	err := f.entries(dir, func(n string, ino uint32) bool {
		if n == name {
			found = ino
		}
		return found == 0
	})
	switch {
	case err != nil:
		return nil, err
	case found == 0:
		return nil, fs.ErrNotExist
	}
	return f.inode(found)
}

// entries calls each with what is in a directory, until it returns false. The index
// of a large one is in entries that look unused.
func (f *FS) entries(dir *inode, each func(name string, ino uint32) bool) error {
	if dir.mode&modeType != modeDir {
		return fmt.Errorf("no directory: %w", fs.ErrNotExist)
	}
	b, err := f.data(dir, maxDir)
	if err != nil {
		return err
	}
	for len(b) > 0 {
		n := min(len(b), int(f.blockSize))
		for block := b[:n]; len(block) > 0; {
			if len(block) < 8 {
				return corrupt("end of a directory")
			}
			ino, length, nameLen := le32(block), int(le16(block[4:])), int(block[6])
			if length == 0 && len(block) == 1<<16 || length == 1<<16-1 {
				length = 1 << 16 // which two bytes cannot hold
			}
			if length < 8+nameLen || length > len(block) {
				return corrupt("entry of a directory")
			}
			if ino != 0 && !each(string(block[8:8+nameLen]), ino) {
				return nil
			}
			block = block[length:]
		}
		b = b[n:]
	}
	return nil
}

// target is where a symbolic link points to.
func (f *FS) target(link *inode) (string, error) {
	if link.size < blockBytes && link.flags&flagExtents == 0 {
		return string(link.block[:link.size]), nil
	}
	b, err := f.data(link, maxSymlink)
	return string(b), err
}
