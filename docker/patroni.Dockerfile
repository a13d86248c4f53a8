# A member of a Patroni cluster, and etcd: the image of docker/Dockerfile with two Debian packages.
#
#   docker build -f docker/patroni.Dockerfile -t litmus-pgnats-patroni .
#
# Like the other file it has not been built where it was written. `make test-ha` runs a pair of members by
# docker/patroni.yml, with the environment that docker/compose.yaml gives them.
FROM litmus-pgnats
RUN apt-get update && apt-get install -y --no-install-recommends patroni etcd-server && rm -rf /var/lib/apt/lists/*
COPY docker/patroni.yml /etc/patroni.yml
USER postgres
ENTRYPOINT ["patroni", "/etc/patroni.yml"]
CMD []
