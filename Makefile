# Two commands matter: "make demo" and "make test". Both install HAProxy, ZooKeeper and Java from the distribution's
# packages where they are missing.

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X github.com/myelin-sd/myelin/cli.version=$(VERSION)

.PHONY: build man demo test lint bench fuzz servers clean

build:
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/myelin .

# The manual pages of all commands, into bin/man.
man: build
	bin/myelin man --dir bin/man

# make demo KEEP=1 leaves everything running and says what to try next.
demo: servers build
	$(GO) run ./demo $(if $(KEEP),-keep)

test: servers-for-tests lint
	$(GO) test -race -timeout 40m ./...

lint:
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "gofmt would change:" $$files; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# What docs/benchmarks.md shows. Takes some minutes; quote ratios, not times.
bench: servers
	$(GO) test -run '^$$' -bench . -benchmem ./discovery/... ./haproxy/... ./agent/...
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 40m .

# The tests that drive a real HAProxy, with each version that docs/haproxy-versions.md lists. SERIES picks some.
.PHONY: versions
versions:
	@GO='$(GO)' packaging/haproxy-versions test $(SERIES)

# Each fuzz target for FUZZTIME.
FUZZTIME ?= 30s
fuzz:
	@for dir in $$(grep -rl '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u); do \
		for f in $$(grep -rhoE '^func Fuzz\w+' $$dir/*_test.go | cut -d' ' -f2 | sort -u); do \
			echo "$$dir $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$dir || exit 1; \
		done; \
	done

servers:
	@packaging/install-servers

.PHONY: servers-for-tests
servers-for-tests:
	@packaging/install-servers tests

clean:
	rm -rf bin
