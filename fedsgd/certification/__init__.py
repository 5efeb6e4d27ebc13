"""Certificates: results of the law suite and measurements of a compressor, on vectors that everyone can compute again."""

from fedsgd.certification.certificate import Certificate, LawResult
from fedsgd.certification.runner import certify, certify_all

__all__ = ["Certificate", "LawResult", "certify", "certify_all"]
