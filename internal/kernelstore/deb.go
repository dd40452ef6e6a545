package kernelstore

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// unpackDeb unpacks files of a Debian package into dir as the current user.
// keep gets a file's path in the package, without leading "./", and returns
// the path below dir to put it at, or "" to leave it out. Symbolic links are
// left out, and so are owners and all modes but execute permission.
func unpackDeb(ctx context.Context, file, dir string, keep func(string) string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	cmd := command(ctx, "dpkg-deb", "--fsys-tarfile", file)
	var msg bytes.Buffer
	cmd.Stderr = &msg
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return &Error{What: "cannot run dpkg-deb", Err: err}
	}
	uerr := untar(root, out, keep)
	if uerr != nil {
		cmd.Cancel() // it would wait for somebody to read on
	}
	io.Copy(io.Discard, out)
	werr := cmd.Wait()
	if uerr != nil && ctx.Err() == nil && !errors.Is(uerr, io.ErrUnexpectedEOF) {
		return fmt.Errorf("unpack %s: %w", path.Base(file), uerr)
	}
	return toolErr(ctx, "dpkg-deb", &msg, errors.Join(werr, uerr))
}

// untar writes what keep wants of the archive r into root.
func untar(root *os.Root, r io.Reader, keep func(string) string) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		to := keep(strings.TrimPrefix(path.Clean("/"+h.Name), "/"))
		if to == "" {
			continue
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(to, 0o755)
		case tar.TypeReg:
			err = writeFile(root, to, 0o644|h.FileInfo().Mode().Perm()&0o111, tr)
		}
		if err != nil {
			return err
		}
	}
}

func writeFile(root *os.Root, name string, mode os.FileMode, r io.Reader) (err error) {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	w, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	_, err = io.Copy(w, r)
	return err
}
