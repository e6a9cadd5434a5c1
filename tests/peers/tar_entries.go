// Lists a gzip tar as Go's archive/tar reads it: one JSON object, name -> [kind, sha256 of the content].
package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

func list(path string) (map[string][2]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	plain, err := gzip.NewReader(file)
	if err != nil {
		return nil, err
	}
	found := map[string][2]string{}
	reader := tar.NewReader(plain)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(header.Name, "./")
		switch header.Typeflag {
		case tar.TypeDir:
		case tar.TypeReg:
			hash := sha256.New()
			if _, err := io.Copy(hash, reader); err != nil {
				return nil, err
			}
			found[name] = [2]string{"file", hex.EncodeToString(hash.Sum(nil))}
		default:
			found[name] = [2]string{"other", string(header.Typeflag)}
		}
	}
}

func main() {
	found, err := list(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
