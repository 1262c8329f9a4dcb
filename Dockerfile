# One image for both roles: the binary, and HAProxy for the agent. Everything comes from the Go module proxy and from
# Debian's packages.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=container
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-X github.com/myelin-sd/myelin/cli.version=${VERSION}" -o /out/myelin . \
 && CGO_ENABLED=0 go build -trimpath -o /out/sample ./demo

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends haproxy curl && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/myelin /out/sample /usr/local/bin/
RUN mkdir -p /var/lib/myelin /etc/myelin
ENTRYPOINT ["myelin"]
CMD ["version"]
