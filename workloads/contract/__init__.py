"""The vocabulary that the operator's side and the pod's side share.

Only the standard library and (in `config`) pydantic are imported here, so a bad job can be
refused without torch and a rank in a foreign Python can use `rundir`, `records`, `files` and `process`.
Nothing is imported at package level: `import workloads.contract` costs nothing.

Change a contract deliberately: bump `CONTRACT_VERSION`, keep a golden file of the old form under
`tests/golden/contract/`, and tell why in `runbooks/design/`.
"""

CONTRACT_VERSION = 1
