package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// What processes answer on their pages is read here, and nowhere else.

// mostOfAnswer bounds an answer: 10,000 instances are some 4 MB.
const mostOfAnswer = 256 << 20

// unknownError is the word of a process that it does not know what was asked about.
type unknownError struct{ text string }

func (e *unknownError) Error() string { return e.text }

// pages is the client for the pages of agents and registrars: they are asked straight, though the operator's shell may
// name a proxy for the world outside.
func pages() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
}

// page reads the first most bytes of what the process at address, HOST:PORT, answers at a path. Errors do not name the
// address. What the process refuses is an error in its own words, printable ones; what it does not have is an
// *unknownError. It blocks until ctx ends at the longest.
func page(ctx context.Context, address, path string, most int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return nil, usage("address %q: %w", address, err)
	}
	resp, err := pages().Do(req)
	if err != nil {
		if request, ok := errors.AsType[*url.Error](err); ok {
			err = request.Err
		}
		return nil, fmt.Errorf("%w; is it running?", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return nil, fmt.Errorf("read its answer: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return body, nil
	}
	var refusal struct {
		Error string `json:"error"`
	}
	switch err := json.Unmarshal(body, &refusal); {
	case err != nil || refusal.Error == "":
		return nil, fmt.Errorf("it answers %s; is it a myelin agent or registrar of this version?", resp.Status)
	case resp.StatusCode == http.StatusNotFound:
		return nil, &unknownError{printable(refusal.Error)}
	}
	return nil, errors.New(printable(refusal.Error))
}

// pageJSON reads into answer what the process at address answers at a path, with the errors of page.
func pageJSON(ctx context.Context, address, path string, answer any) error {
	body, err := page(ctx, address, path, mostOfAnswer)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return fmt.Errorf("read its answer: %w", err)
	}
	return nil
}

// fromAgentAt is pageJSON of an agent, with errors that name it. An *unknownError speaks for itself.
func fromAgentAt(ctx context.Context, address, path string, answer any) error {
	err := pageJSON(ctx, address, path, answer)
	if _, unknown := errors.AsType[*unknownError](err); err == nil || unknown {
		return err
	}
	return fmt.Errorf("ask the agent at %s: %w", address, err)
}
