package agent

import (
	"bytes"
	"os"

	"github.com/myelin-sd/myelin/durable"
)

// replaceFile puts data at path, for others to read. temp is beside path.
func replaceFile(path, temp string, data []byte) error {
	return durable.Replace(durable.File{Path: path, Temp: temp, Mode: 0o644}, data)
}

// holds tells whether the file at path is a plain one with this text.
func holds(path string, text []byte) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() != int64(len(text)) {
		return false
	}
	old, err := os.ReadFile(path)
	return err == nil && bytes.Equal(old, text)
}
