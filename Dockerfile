# One image a component: an empty base and one static binary. `leno-cluster build-images` calls this with
#
#   --target STAGE    leno-operator, leno-control-plane, leno-proxy, leno-envoy, leno-demo (or pause, for the local cluster)
#   BIN               the file in the build context, and its path in the image: the same name, but leno-proxy for leno-envoy
#   VERSION           the release that the binary is
#   PREVIOUS_VERSION  the release before it: an operator renders its own and this one
#   FAULT             what is wrong with a build that is bad on purpose, in the two stages of tests of upgrades
FROM scratch AS base
ARG BIN
ARG VERSION
ARG PREVIOUS_VERSION=
COPY ${BIN} /${BIN}
ENV LENO_VERSION=${VERSION} LENO_PREVIOUS_VERSION=${PREVIOUS_VERSION}
LABEL org.opencontainers.image.title=${BIN} org.opencontainers.image.version=${VERSION} org.opencontainers.image.licenses=Apache-2.0

FROM base AS pause
USER 65532:65532
ENTRYPOINT ["/pause"]

FROM base AS leno-operator
USER 65532:65532
ENTRYPOINT ["/leno-operator"]

FROM base AS leno-control-plane
USER 65532:65532
ENTRYPOINT ["/leno-control-plane"]

# Capture leaves this user's traffic alone.
FROM base AS leno-proxy
USER 1337:1337
ENTRYPOINT ["/leno-proxy"]

# The same agent with Envoy beside it. `envoy/` in the build context is Envoy with the C library that it needs, each file under
# the path that it has in the image.
FROM base AS leno-envoy
COPY envoy/ /
ENV LENO_ENGINE=envoy LENO_ENVOY_BINARY=/envoy
USER 1337:1337
ENTRYPOINT ["/leno-proxy"]

# Builds that are bad on purpose (e2e/faulty): the file in the build context is one of those.
FROM leno-proxy AS leno-proxy-faulty
ARG FAULT
ENV LENO_FAULT=${FAULT}

FROM leno-envoy AS leno-envoy-faulty
ARG FAULT
ENV LENO_FAULT=${FAULT}

FROM leno-control-plane AS leno-control-plane-faulty
ARG FAULT
ENV LENO_FAULT=${FAULT}

FROM base AS leno-demo
USER 65532:65532
ENTRYPOINT ["/leno-demo"]
