"""What a worker's report may bring into the store: JSON within the limits, whatever the worker sent.

Workers of ours send nothing else. One that is broken or hostile would else put bytes into the store that break every list they stand in, or
that say more there than one value. Its job fails instead, where a person can see why.
"""

from __future__ import annotations

from typing import Final

import msgspec

from easyjobs.domain import payload
from easyjobs.domain.job import MAX_RESULT, ErrorInfo, Outcome, Report

_error: Final = msgspec.json.Decoder(ErrorInfo).decode


def sound(report: Report) -> Report:
    """The report as it may be stored: itself, or that of a failure (`kind` "bad_report") where its body cannot be kept."""
    body = report.body
    if report.outcome is Outcome.SUCCEEDED:
        try:
            if len(body) <= MAX_RESULT:
                payload.decode(body)
                return report
            why = f"it has {len(body):,} bytes, the limit is {MAX_RESULT:,}"
        except payload.BadJson as error:
            why = str(error)
        return _failed(report, f"the worker reported a result that cannot be kept: {why}", retry=False)
    if report.outcome is Outcome.FAILED:
        try:
            if len(body) <= MAX_RESULT:
                payload.decode(body)
                _error(body)
                return report
            why = f"it has {len(body):,} bytes, the limit is {MAX_RESULT:,}"
        except (payload.BadJson, msgspec.DecodeError) as error:
            why = str(error)
        return _failed(report, f"the worker reported a failure in words that cannot be kept: {why}", retry=report.retry)
    return msgspec.structs.replace(report, body=b"") if body else report


def _failed(report: Report, message: str, *, retry: bool) -> Report:
    body = msgspec.json.encode(ErrorInfo(type="BadReport", message=message[:1000], kind="bad_report"))
    return msgspec.structs.replace(report, outcome=Outcome.FAILED, body=body, retry=retry)
