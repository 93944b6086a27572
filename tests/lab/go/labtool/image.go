package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// image packs a directory tree as one layer. The same tree gives the same image, whoever packs it: no times, no owners.
func image(args []string) error {
	if len(args) < 3 {
		return errors.New("usage: image OUT TAG ROOT [--entrypoint A,B] [--user UID:GID] [--env K=V]")
	}
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	entrypoint := flags.String("entrypoint", "", "comma-separated")
	user := flags.String("user", "", "UID:GID")
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	flags.Func("env", "K=V", func(v string) error { env = append(env, v); return nil })
	if err := flags.Parse(args[3:]); err != nil {
		return err
	}
	layer, err := pack(args[2])
	if err != nil {
		return err
	}
	digest := func(b []byte) string { sum := sha256.Sum256(b); return hex.EncodeToString(sum[:]) }
	var command []string
	if *entrypoint != "" {
		command = strings.Split(*entrypoint, ",")
	}
	type object map[string]any
	config, err := json.Marshal(object{
		"architecture": runtime.GOARCH, "os": "linux", "created": "1970-01-01T00:00:00Z",
		"config": object{"Env": env, "Entrypoint": command, "User": *user},
		"rootfs": object{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	})
	if err != nil {
		return err
	}
	configName := digest(config) + ".json"
	manifest, err := json.Marshal([]object{{"Config": configName, "RepoTags": []string{args[1]}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	out, err := os.Create(args[0])
	if err != nil {
		return err
	}
	defer out.Close()
	archive := tar.NewWriter(out)
	for _, file := range []struct {
		name    string
		content []byte
	}{{configName, config}, {"layer.tar", layer}, {"manifest.json", manifest}} {
		if err := archive.WriteHeader(&tar.Header{Name: file.name, Size: int64(len(file.content)), Mode: 0o644}); err != nil {
			return err
		}
		if _, err := archive.Write(file.content); err != nil {
			return err
		}
	}
	if err := archive.Close(); err != nil {
		return err
	}
	return out.Close()
}

func pack(root string) ([]byte, error) {
	var layer bytes.Buffer
	archive := tar.NewWriter(&layer)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		header.Name, _ = filepath.Rel(root, path)
		if entry.IsDir() {
			header.Name += "/"
		}
		// only what matters: no time, no owner
		*header = tar.Header{Typeflag: header.Typeflag, Name: header.Name, Linkname: link, Size: header.Size, Mode: header.Mode, Format: tar.FormatGNU}
		if err := archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = io.Copy(archive, file)
		return err
	})
	if err == nil {
		err = archive.Close()
	}
	return layer.Bytes(), err
}
