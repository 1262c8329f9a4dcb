package haproxy

import "strings"

// Lines are the commands of a step as Client.Apply sends them, one a line without its line end, or why it sends none of
// them (ErrUnsafe for text that could mean more than one word).
func (s Step) Lines() ([]string, error) {
	j := job{result: &Result{Step: s}}
	if err := j.prepare(); err != nil {
		return nil, err
	}
	lines := make([]string, len(j.commands))
	for i, words := range j.commands {
		lines[i] = strings.Join(words, " ")
	}
	return lines, nil
}
