"""What a graded scale and a clinic ask of predictions, over weights (see ``weighted``)."""

import numpy as np

from cervix_utils.weighted import confusion, f1_per_class, kendall_tau, quadratic_kappa, sensitivity_at

SPECIFICITY, SENSITIVITY = 0.9, 0.95  # fixed operating points of the binary call


def ordinal(true: np.ndarray, predicted: np.ndarray, score: np.ndarray, k: int, weights: np.ndarray) -> dict:
    """Metrics of a graded scale: errors in grades of the score, and of the named class.

    ``mae_macro``: mean over classes of each class's MAE; ``adjacent_accuracy``: share at most one grade off;
    ``severe_miss``: share three or more grades off; ``cis_called_normal``, ``normal_called_cis``: share of the cells of
    one end of the scale that are called the other end.
    """
    total, error, off = weights.sum(axis=1), score - (true + 1), np.abs(predicted - true)
    members = np.eye(k)[true]
    with np.errstate(invalid="ignore"):
        each = (weights * np.abs(error)) @ members / (weights @ members)
        ends = [
            weights @ ((true == a) & (predicted == b)) / (weights @ (true == a)) for a, b in ((k - 1, 0), (0, k - 1))
        ]
    return {
        "mse": weights @ error**2 / total,
        "mae": weights @ np.abs(error) / total,
        "mae_macro": each.mean(axis=1),
        "adjacent_accuracy": weights @ (off <= 1) / total,
        "severe_miss": weights @ (off >= 3) / total,
        "cis_called_normal": ends[0],
        "normal_called_cis": ends[1],
        "kendall_tau": kendall_tau(true, score, weights),
        "kappa_quadratic": quadratic_kappa(confusion(true, predicted, k, weights)),
    }


def bethesda(true: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict:
    """Three groups a clinician reads: normal, LSIL (light dysplasia), HSIL (moderate, severe, carcinoma in situ)."""
    matrices = confusion(np.minimum(true, 2), np.minimum(predicted, 2), 3, weights)
    with np.errstate(invalid="ignore"):
        recalls = np.diagonal(matrices, axis1=1, axis2=2) / matrices.sum(axis=2)
    return {
        "bethesda_accuracy": np.trace(matrices, axis1=1, axis2=2) / weights.sum(axis=1),
        "bethesda_f1_macro": f1_per_class(matrices).mean(axis=1),
        "hsil_sensitivity": recalls[:, 2],
    }


def operating_points(abnormal: np.ndarray, score: np.ndarray, weights: np.ndarray) -> dict:
    """Sensitivity for abnormal cells at specificity 0.90, and specificity at sensitivity 0.95, of any threshold."""
    return {
        "sensitivity_at_specificity_90": sensitivity_at(SPECIFICITY, abnormal, score, weights),
        "specificity_at_sensitivity_95": sensitivity_at(SENSITIVITY, ~abnormal, -score, weights),
    }


def predictive_values(sensitivity: np.ndarray, specificity: np.ndarray, prevalence: float) -> dict:
    """PPV and NPV (0..1) of a binary call where a share ``prevalence`` (0..1) is abnormal, by Bayes' rule."""
    true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    missed, cleared = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
    with np.errstate(invalid="ignore"):
        return {"ppv": true / (true + false), "npv": cleared / (cleared + missed)}
