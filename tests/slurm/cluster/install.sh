#!/usr/bin/env bash
# What minislurm.py needs, from Debian's own packages: 75 MB on disk. The -core packages carry MariaDB's programs without
# its service. Tried on Debian 12, which has Slurm 22.05, in a container without an init system.
set -euo pipefail
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "error: installing Slurm for the tests needs root and apt-get; run tests/slurm/cluster/install.sh as root, or only make test" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends \
  slurmctld slurmd slurm-client slurmdbd munge mariadb-server-core mariadb-client-core > /dev/null
slurmctld -V
