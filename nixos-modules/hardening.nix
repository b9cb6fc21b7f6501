# What systemd takes from our services: everything but what stands below with its reason. `systemd-analyze security`
# shows both. What stays open on purpose:
#   PrivateNetwork=, IPAddressDeny=  the registry is a server and a client of package sets and binary caches;
#                                    the image service asks registries for manifests
#   AF_UNIX                          the Nix daemon, containerd, systemd's own sockets
#   AF_NETLINK                       resolvers look up the machine's addresses (getaddrinfo(3))
#   RootDirectory=                   Nix's programs need the whole /nix/store, read-only
# `privateStore`: Nix builds in a store of our own, whose sandbox needs namespaces, mounts and root inside them.
{
  lib,
  privateStore ? false,
}:
{
  CapabilityBoundingSet = "";
  DevicePolicy = "closed";
  LockPersonality = true;
  MemoryDenyWriteExecute = true;
  NoNewPrivileges = true;
  PrivateDevices = true;
  PrivateMounts = true;
  PrivateTmp = true;
  ProcSubset = "pid";
  ProtectClock = true;
  ProtectControlGroups = true;
  ProtectHome = true;
  ProtectHostname = true;
  ProtectKernelLogs = true;
  ProtectKernelModules = true;
  ProtectKernelTunables = true;
  ProtectProc = "invisible";
  ProtectSystem = "strict";
  RemoveIPC = true;
  RestrictAddressFamilies = [
    "AF_UNIX"
    "AF_INET"
    "AF_INET6"
    "AF_NETLINK"
  ];
  RestrictNamespaces = true;
  RestrictRealtime = true;
  RestrictSUIDSGID = true;
  SystemCallArchitectures = "native";
  SystemCallErrorNumber = "EPERM";
  SystemCallFilter = [
    "@system-service"
    "~@privileged @resources"
    # Memory limits of evaluators; niceness of builds.
    "prlimit64 setpriority"
  ];
  UMask = "0077";
}
// lib.optionalAttrs privateStore {
  # The sandbox of builds makes namespaces, mounts a root of its own and is root in there.
  MemoryDenyWriteExecute = false;
  PrivateDevices = false;
  ProcSubset = "all";
  ProtectHostname = false;
  ProtectKernelLogs = false;
  ProtectKernelTunables = false;
  ProtectProc = "default";
  RestrictNamespaces = false;
  RestrictSUIDSGID = false;
  SystemCallArchitectures = "";
  SystemCallFilter = [
    "@system-service"
    "@mount"
    "@pkey"
    "seccomp pivot_root unshare setns sethostname setdomainname personality"
  ];
}
